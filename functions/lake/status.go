package main

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// topicStatus is one route's part of GET /lake/status.
type topicStatus struct {
	Topic  string `json:"topic"`
	Bucket string `json:"bucket"`
	// Missing says that the topic does not exist.
	Missing    bool              `json:"missing,omitempty"`
	Lag        int64             `json:"lag"`
	Partitions []partitionStatus `json:"partitions"`
}

type partitionStatus struct {
	Partition int32 `json:"partition"`
	// Committed is the offset up to which the partition is in the lake, null when
	// it was never drained.
	Committed     *int64 `json:"committed"`
	LogStart      int64  `json:"log_start"`
	HighWatermark int64  `json:"high_watermark"`
	Lag           int64  `json:"lag"`
	// Problem is why the partition is not drained.
	Problem string `json:"problem,omitempty"`
	// LastObject is the key that this process wrote last, if it wrote any.
	LastObject string `json:"last_object,omitempty"`
}

// status asks Kafka how far every route is.
func (d *Drainer) status(ctx context.Context) ([]topicStatus, error) {
	positions, err := d.positions(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	status := make([]topicStatus, len(d.routes))
	for i, r := range d.routes {
		t := topicStatus{Topic: r.Topic, Bucket: r.Bucket, Missing: d.missing[r.Topic], Partitions: []partitionStatus{}}
		for _, p := range positions {
			if p.topic != r.Topic {
				continue
			}
			s := partitionStatus{
				Partition: p.partition, LogStart: p.logStart, HighWatermark: p.end,
				Lag: max(p.end-max(p.committed, p.logStart), 0),
			}
			if p.committed >= 0 {
				s.Committed = &p.committed
			}
			if state := d.states[partitionID{p.topic, p.partition}]; state != nil {
				s.LastObject = state.lastObject
				s.Problem = state.problem
			}
			t.Lag += s.Lag
			t.Partitions = append(t.Partitions, s)
		}
		status[i] = t
	}
	return status, nil
}

// serveStatus answers GET /lake/status.
func (d *Drainer) serveStatus(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	w.Header().Set("Content-Type", "application/json")
	status, err := d.status(ctx)
	if err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"topics": status})
}
