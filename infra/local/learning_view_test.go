package main

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestLearningLine(t *testing.T) {
	const shop, power, anomaly = "purchase_prediction_model", "power_prediction_model", "server_anomaly_model"
	for _, c := range []struct {
		name   string
		status LearningStatus
		width  int
		want   string
	}{
		{"installing", LearningStatus{State: "installing", Detail: "installing the trainer and MLflow: some minutes, once"}, 80,
			" learning installing, installing the trainer and MLflow: some minutes, once"},
		{"cannot be installed", LearningStatus{State: "failed", Detail: "there is no python3"}, 80, " learning there is no python3"},
		{"no package index", LearningStatus{State: "failed", Detail: "no training before 12:28: Python packages missing: package index: Connection refused; more in /x"}, 80,
			" learning no training before 12:28: Python packages missing: package index: Co…"},
		{"up", LearningStatus{State: "up", Detail: "MLflow at http://127.0.0.1:15000"}, 80,
			" learning MLflow at http://127.0.0.1:15000, no model was trained yet"},
		{"the first", LearningStatus{State: "up", Models: []ModelLearning{{Model: shop, Run: "requested"}}}, 80, " learning purchase starter, training"},
		{"serving", LearningStatus{State: "up", Models: []ModelLearning{
			{Model: power, Version: "12", Run: "judged", Decision: "promote"}, {Model: shop, Version: "3", Run: "requested"}, {Model: anomaly}}}, 100,
			" learning power version 12 · purchase version 3, training · server_anomaly starter, waits for rows"},
		{"in trouble", LearningStatus{State: "up", Models: []ModelLearning{{Model: shop, Version: "3", Run: "failed", Failure: "database_unavailable: reading the training set: no route to host"}}}, 60,
			" learning purchase version 3, database_unavailable: readin…"},
		{"kept", LearningStatus{State: "up", Models: []ModelLearning{{Model: shop, Version: "3", Run: "judged", Decision: "keep"}}}, 80,
			" learning purchase version 3, new one kept out"},
		{"little room", LearningStatus{State: "up", Models: []ModelLearning{{Model: power, Version: "12"}, {Model: shop, Version: "3"}, {Model: anomaly, Version: "1", Run: "requested"}}}, 60,
			" learning power version 12 · purchase version 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ansi.ReplaceAllString(learningLine(c.status, c.width-1), "")
			if diff := cmp.Diff(c.want, strings.TrimRight(got, " ")); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if n := utf8.RuneCountInString(got); n >= c.width {
				t.Errorf("%d columns on a screen of %d", n, c.width)
			}
		})
	}
}
