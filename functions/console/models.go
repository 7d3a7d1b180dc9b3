package main

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-dev/millrace/shared/registry"
)

const registrySource = "MLflow"

// registered are the models that Millrace trains.
var registered = []string{"purchase_prediction_model", "power_prediction_model", "server_anomaly_model"}

// registeredModel is a model of the registry with its versions, the newest first.
type registeredModel struct {
	Name     string            `json:"name"`
	Aliases  map[string]string `json:"aliases"`
	Versions []modelVersion    `json:"versions"`
}

type modelVersion struct {
	Version   string            `json:"version"`
	CreatedAt time.Time         `json:"createdAt"`
	Tags      map[string]string `json:"tags"`
}

// models are the registry's versions and the decisions about them. Decisions are there
// without the registry too, and the answer says why the versions are not.
func (c *console) models(ctx context.Context, _ *http.Request) (any, error) {
	if c.registry == nil && c.db == nil {
		return nil, unset(registrySource, "MLFLOW_TRACKING_URI")
	}
	answer := map[string]any{}
	for name, sql := range map[string]string{
		"decisions": `SELECT to_jsonb(d) - 'event' FROM learning.decisions d ORDER BY d.decision_id DESC LIMIT 100`,
		"runs":      `SELECT to_jsonb(r) FROM learning.runs r ORDER BY r.run_id DESC LIMIT 50`,
	} {
		list, err := c.rows(ctx, sql)
		if err != nil && !isAbsent(err) {
			return nil, err
		}
		answer[name] = list
	}
	list, err := c.registered(ctx)
	if err != nil {
		answer["unknown"] = err.Error()
	}
	answer["models"] = list
	return answer, nil
}

// registered are the models of the registry with their versions.
func (c *console) registered(ctx context.Context) ([]registeredModel, error) {
	list := []registeredModel{}
	if c.registry == nil {
		return list, unset(registrySource, "MLFLOW_TRACKING_URI")
	}
	for _, name := range registered {
		aliases, err := c.aliases(ctx, name)
		if errors.Is(err, registry.ErrNotFound) {
			continue
		}
		if err != nil {
			return list, err
		}
		versions, err := c.registry.Versions(ctx, name)
		if err != nil {
			return list, c.watch.failed(registrySource, away(registrySource, err))
		}
		m := registeredModel{Name: name, Aliases: aliases, Versions: []modelVersion{}}
		for _, v := range versions {
			m.Versions = append(m.Versions, modelVersion{v.Version, v.CreatedAt, v.Tags})
		}
		slices.SortFunc(m.Versions, func(a, b modelVersion) int { return number(b.Version) - number(a.Version) })
		list = append(list, m)
	}
	return list, nil
}

func (c *console) aliases(ctx context.Context, name string) (map[string]string, error) {
	aliases, err := c.registry.Aliases(ctx, name)
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return nil, c.watch.failed(registrySource, away(registrySource, err))
	}
	c.watch.well(registrySource)
	return aliases, err
}

// number orders versions, which are numbers as text.
func number(version string) int {
	n, err := strconv.Atoi(version)
	if err != nil {
		return -1
	}
	return n
}
