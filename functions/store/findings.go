package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/anomaly"
	"github.com/millrace-dev/millrace/shared/events"
)

// predictions are what models said; the first of a model about an entity at a time
// stays, though another version may say something else when the event comes again.
var predictions = &table{
	event: events.PredictionMade,
	name:  `"public"."predictions"`,
	columns: []string{`"timestamp"`, "model", "entity", "model_version", "prediction", "actual", "error", "prediction_error_percent",
		"confidence_score", "low", "high", "details", "predicted_at"},
	key:    []string{"model", "entity", `"timestamp"`},
	series: "predictions",
	time:   `"timestamp"`,
	write: func(e *event.Event, r *row) error {
		var p prediction
		if err := json.Unmarshal(e.Data(), &p); err != nil {
			return fmt.Errorf("reading a prediction: %w", err)
		}
		if err := required("model_name", p.Model, "entity_id", p.Entity, "model_version", p.Version); err != nil {
			return err
		}
		if p.Timestamp.IsZero() {
			return fmt.Errorf("field timestamp is required")
		}
		r.at(p.Timestamp)
		r.text("model_name", p.Model)
		r.text("entity_id", p.Entity)
		r.text("model_version", p.Version)
		var number float64
		switch value := bytes.TrimSpace(p.Prediction); {
		case len(value) == 0 || bytes.Equal(value, []byte("null")):
			return fmt.Errorf("field prediction is required")
		case value[0] == '[':
			r.null()
			p.details.Prediction = value
		default:
			if err := json.Unmarshal(value, &number); err != nil {
				return fmt.Errorf("field prediction should be a number or a list of them: %w", err)
			}
			r.float64(number)
		}
		for _, v := range []*float64{p.Actual, p.Error, p.ErrorPercent, p.Confidence, p.Low, p.High} {
			r.floatOrNull(v)
		}
		details, err := json.Marshal(&p.details)
		if err != nil {
			return fmt.Errorf("writing the details: %w", err)
		}
		r.jsonb("details", details)
		if p.PredictedAt.IsZero() {
			r.null()
		} else {
			r.time(p.PredictedAt)
		}
		return r.err
	},
}

// prediction is the data of prediction.made that has columns.
type prediction struct {
	Model        string          `json:"model_name"`
	Version      string          `json:"model_version"`
	Entity       string          `json:"entity_id"`
	Timestamp    time.Time       `json:"timestamp"`
	Prediction   json.RawMessage `json:"prediction"`
	Actual       *float64        `json:"actual"`
	Error        *float64        `json:"error"`
	ErrorPercent *float64        `json:"error_percent"`
	Confidence   *float64        `json:"confidence"`
	Low          *float64        `json:"low"`
	High         *float64        `json:"high"`
	PredictedAt  time.Time       `json:"predicted_at"`
	details
}

// details are the members that have none.
type details struct {
	Contract    string `json:"contract,omitempty"`
	UserID      *int64 `json:"user_id,omitempty"`
	ProductID   *int64 `json:"product_id,omitempty"`
	UserSession string `json:"user_session,omitempty"`
	EventType   string `json:"event_type,omitempty"`
	RecordHash  string `json:"record_hash,omitempty"`
	// Prediction is one a class.
	Prediction json.RawMessage `json:"predictions,omitempty"`
}

// required says which of names and values, in turns, is empty.
func required(list ...string) error {
	for i := 0; i < len(list); i += 2 {
		if list[i+1] == "" {
			return fmt.Errorf("field %s is required", list[i])
		}
	}
	return nil
}

// anomalies are what detectors found. The events of one anomaly tell of one row: that
// it was detected, that it got worse, that it is over, in whatever order they come.
var anomalies = &table{
	event:   events.AnomalyDetected,
	also:    []string{events.AnomalyResolved},
	name:    `"public"."anomalies"`,
	columns: []string{`"timestamp"`, "entity_type", "entity_id", "anomaly_type", "severity", "anomaly_score", "details", "resolved", "resolved_at"},
	key:     []string{"entity_type", "entity_id", "anomaly_type", `"timestamp"`},
	series:  "anomalies",
	time:    `"timestamp"`,
	// The end knows all; before it, the highest score.
	order: "resolved DESC, anomaly_score DESC, number",
	conflict: `DO UPDATE SET severity = EXCLUDED.severity, anomaly_score = EXCLUDED.anomaly_score, details = EXCLUDED.details,
		resolved = EXCLUDED.resolved, resolved_at = EXCLUDED.resolved_at
		WHERE (EXCLUDED.resolved, EXCLUDED.anomaly_score) > (t.resolved, t.anomaly_score)`,
	write: writeAnomaly,
}

func writeAnomaly(e *event.Event, r *row) error {
	var a struct {
		anomaly.Anomaly
		Details json.RawMessage `json:"details"`
	}
	if err := json.Unmarshal(e.Data(), &a); err != nil {
		return fmt.Errorf("reading an anomaly: %w", err)
	}
	if err := required("entity_type", a.EntityType, "entity_id", a.EntityID, "anomaly_type", a.Type, "severity", a.Severity); err != nil {
		return err
	}
	switch {
	case a.Timestamp.IsZero():
		return fmt.Errorf("field timestamp is required")
	case len(a.Details) == 0:
		return fmt.Errorf("field details is required")
	case a.Resolved != (e.Type() == events.AnomalyResolved) || a.Resolved != (a.ResolvedAt != nil):
		return fmt.Errorf("fields resolved and resolved_at should be true and a time in %s, and false and null in %s", events.AnomalyResolved, events.AnomalyDetected)
	}
	r.at(a.Timestamp)
	r.text("entity_type", a.EntityType)
	r.text("entity_id", a.EntityID)
	r.text("anomaly_type", a.Type)
	r.text("severity", a.Severity)
	r.float64(a.Score)
	r.jsonb("details", a.Details)
	r.bool(a.Resolved)
	if a.ResolvedAt == nil {
		r.null()
	} else {
		r.time(*a.ResolvedAt)
	}
	return r.err
}
