// Health says of objects what Flux and Helm would: kstatus's status, or that of a Kustomization's health expressions.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// question is one object, and the expressions to judge it by; without them kstatus judges it.
type question struct {
	Object      unstructured.Unstructured         `json:"object"`
	Expressions *kustomize.HealthCheckExpressions `json:"expressions"`
}

type answer struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	var questions []question
	if err := json.NewDecoder(os.Stdin).Decode(&questions); err != nil {
		fail(err)
	}
	answers := make([]answer, 0, len(questions))
	for _, asked := range questions {
		found, err := judge(asked)
		if err != nil {
			fail(err)
		}
		answers = append(answers, answer{Status: found.Status.String(), Message: found.Message})
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		fail(err)
	}
}

func judge(asked question) (*status.Result, error) {
	if asked.Expressions == nil {
		return status.Compute(&asked.Object)
	}
	evaluator, err := cel.NewStatusEvaluator(asked.Expressions)
	if err != nil {
		return nil, err
	}
	return evaluator.Evaluate(context.Background(), &asked.Object)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
