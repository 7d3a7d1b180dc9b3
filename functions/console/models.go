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

// anyModel is a name to ask the registry for when what it answers does not matter.
const anyModel = "purchase_prediction_model"

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
	names, err := c.learnt(ctx)
	if err != nil {
		return list, err
	}
	for _, name := range names {
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

// learnt are the names of the models that train-trigger has policies for.
func (c *console) learnt(ctx context.Context) ([]string, error) {
	if c.trainer == "" {
		return nil, unset(trainerSource, "TRAIN_TRIGGER_URL")
	}
	var answer struct{ Models []struct{ Model string } }
	if err := c.get(ctx, trainerSource, c.trainer+"/models", &answer); err != nil {
		return nil, err
	}
	names := make([]string, len(answer.Models))
	for i, m := range answer.Models {
		names[i] = m.Model
	}
	return names, nil
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
