// Package grafana reads the dashboards, for the tests that run their queries and those that
// look at them.
package grafana

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"strings"
)

//go:embed dashboards/*.json
var files embed.FS

// Dashboard is what is needed of one.
type Dashboard struct {
	UID    string
	Title  string
	Panels []struct {
		ID         int
		Title      string
		Type       string
		GridPos    struct{ Y, H int64 }
		Datasource Source
		Targets    []struct {
			Datasource Source
			Format     string
			RawSQL     string `json:"rawSql"`
			Expr       string
		}
	}
	Templating struct {
		List []struct {
			Name, Query string
		}
	}
}

// Source is a data source as a panel names it.
type Source struct{ Type, UID string }

// Dashboards reads all, by their uids in order. A file has the name of its dashboard's uid.
func Dashboards() ([]Dashboard, error) {
	names, err := fs.Glob(files, "dashboards/*.json")
	if err != nil {
		return nil, err
	}
	all := make([]Dashboard, len(names))
	for i, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(text, &all[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if uid := strings.TrimSuffix(strings.TrimPrefix(name, "dashboards/"), ".json"); all[i].UID != uid {
			return nil, fmt.Errorf("%s has the uid %q", name, all[i].UID)
		}
	}
	return all, nil
}

// MayBeEmpty are titles of panels that a platform that is well, or new, has nothing for.
var MayBeEmpty = map[string]bool{
	"Checks that failed": true, "Steps that failed": true, "Deliveries that have been failing": true,
	"Events that failed, by function and outcome": true, "Drift by column, in units of its limit": true,
	"Share of columns that drifted": true, "State of each model": true, "Decisions": true, "Runs": true,
	"By severity, 24 h": true, "By metric, 24 h": true, "Anomalies by severity": true, "The latest anomalies": true,
	"$metric of $entity": true, "Requests, 50th and 99th percentile": true, "Training-serving skew: values that differ": true,
	"Power: predicted and actual": true, "Lookups of entities by outcome": true, "Distribution of the shop's scores": true,
	"Dead letters by status": true, "Decisions by the gate, 24 h": true, "Age of the oldest detector": true,
	"Drift of columns, as a share of its limit": true,
}
