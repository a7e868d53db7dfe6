// Dashboards reads a dashboard by the schema that Grafana publishes, and prints each field that differs from it.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/bargauge"
	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

func main() {
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		fail(err)
	}
	runtime := cog.NewRuntime()
	runtime.RegisterPanelcfgVariant(bargauge.VariantConfig())
	runtime.RegisterPanelcfgVariant(stat.VariantConfig())
	runtime.RegisterPanelcfgVariant(table.VariantConfig())
	runtime.RegisterPanelcfgVariant(timeseries.VariantConfig())
	runtime.RegisterDataqueryVariant(prometheus.VariantConfig())

	var read dashboard.Dashboard
	report("dashboard", read.UnmarshalJSONStrict(raw))
	report("dashboard", read.Validate())
	var top panel
	if err := json.Unmarshal(raw, &top); err != nil {
		fail(err)
	}
	for _, one := range top.Panels {
		one.check()
	}
}

// panel has what the strict reader of a dashboard skips: types without a schema, and field settings but the custom ones.
type panel struct {
	Type        string          `json:"type"`
	Title       string          `json:"title"`
	FieldConfig json.RawMessage `json:"fieldConfig"`
	Panels      []panel         `json:"panels"`
}

func (one panel) check() {
	for _, inner := range one.Panels {
		inner.check()
	}
	if one.Type == "row" {
		return
	}
	if _, found := cog.ConfigForPanelcfgVariant(one.Type); !found {
		report(one.Title, fmt.Errorf("no schema of type %s is read", one.Type))
	}
	var settings dashboard.FieldConfigSource
	report(one.Title+".fieldConfig", settings.UnmarshalJSONStrict(one.FieldConfig))
}

func report(where string, err error) {
	if err == nil {
		return
	}
	for _, fault := range cog.MakeBuildErrors(where, err) {
		fmt.Println(fault)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
