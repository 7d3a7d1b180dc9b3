// Package anomaly tells what is out of the ordinary in the metrics of a stream.
//
// Three detectors stand behind one interface: what is expected of the hour, learnt
// from history by STL (package stl), with the distance counted in robust deviations;
// an isolation forest over all metrics of a reading; and the limits that a contract
// states. A Tracker turns what they say of single points into anomalies that begin
// and end: sustained, not repeated, the same whatever comes twice or late.
//
// The package has no I/O: models and states are bytes, and where they are kept is
// the business of functions/detect.
package anomaly

import (
	"time"
)

// Anomaly is the data of anomaly.detected and anomaly.resolved, and a row of the
// table anomalies. Its key is (EntityType, EntityID, Type, Timestamp): both events of
// an anomaly have the same, and so has one that tells of a higher severity.
type Anomaly struct {
	// Timestamp is the time of the reading by which the anomaly was detected.
	Timestamp  time.Time `json:"timestamp"`
	EntityType string    `json:"entity_type"`
	EntityID   string    `json:"entity_id"`
	// Type is the detector and the metric: stl_zscore_<metric>, threshold_<metric>,
	// isolation_forest.
	Type string `json:"anomaly_type"`
	// Severity is the highest so far: low, medium, high or critical.
	Severity string `json:"severity"`
	// Score is the highest so far, 0 to 1.
	Score   float64 `json:"anomaly_score"`
	Details Details `json:"details"`
	// Resolved is true in anomaly.resolved, and ResolvedAt the time of the reading by
	// which it was over.
	Resolved   bool       `json:"resolved"`
	ResolvedAt *time.Time `json:"resolved_at"`
}

// Details are the numbers behind an anomaly. What a detector does not know is null.
type Details struct {
	// Contract is the stream contract of the reading.
	Contract string `json:"contract"`
	// Metric is the field; empty for the forest, which judges all of them.
	Metric   string  `json:"metric_name,omitempty"`
	Actual   float64 `json:"actual_value"`
	Expected float64 `json:"expected_value"`
	// Z is the distance in robust standard deviations of single readings.
	Z        float64 `json:"z_score"`
	Residual float64 `json:"residual"`
	Trend    float64 `json:"trend"`
	Seasonal float64 `json:"seasonal"`
	// Threshold is what was exceeded, in the unit of Z; for a rule, its limit.
	Threshold float64 `json:"threshold"`
	// Model says by what was judged: seasonal; level, while the history is too short
	// for a season; forest, with its version; or rule.
	Model string `json:"model"`
	// TrainedAt is the model's age; absent for rules.
	TrainedAt *time.Time `json:"model_trained_at,omitempty"`
	// EscalatedFrom is the former severity, in an event that tells of a higher one.
	EscalatedFrom string `json:"escalated_from,omitempty"`
	// Points is how many readings the anomaly lasted, in anomaly.resolved.
	Points int `json:"points,omitempty"`
}

// Severities, by the score: from 0.8, 0.6, 0.4, and below.
const (
	Critical = "critical"
	High     = "high"
	Medium   = "medium"
	Low      = "low"
)

// Severity is that of a score.
func Severity(score float64) string {
	switch {
	case score >= 0.8:
		return Critical
	case score >= 0.6:
		return High
	case score >= 0.4:
		return Medium
	}
	return Low
}
