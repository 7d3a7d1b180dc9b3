package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

// hop is one thing that an event came from or caused.
type hop struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
	// Where it was found: in Kafka, as an event with what it says in Data, or in
	// PostgreSQL, as a row.
	Where string          `json:"where"`
	Data  json.RawMessage `json:"data"`
}

// The statements that find what was stored of an event give JSON of {at, what, data}.
// recordsSQL takes the ids of events, and a record's hash or a session.
const (
	recordsSQL = `
WITH found AS (
	SELECT b.* FROM bronze.events b WHERE b.ce_id = ANY ($1::text[]) OR b.record_hash = CASE WHEN $2 ~ '^[0-9a-f]{64}$' THEN decode($2, 'hex') END
		OR b.record_hash IN (SELECT s.record_hash FROM silver.events s WHERE s.user_session = $2) ORDER BY b.kafka_timestamp LIMIT 200
), hashes AS (SELECT DISTINCT record_hash FROM found)
SELECT jsonb_build_object('at', b.kafka_timestamp, 'what', 'verdict in its topic', 'data', jsonb_build_object(
	'event', b.event_type, 'product_id', b.product_id, 'user_id', b.user_id, 'user_session', b.user_session, 'price', b.price,
	'event_time', b.event_time, 'id', b.ce_id, 'topic_partition', b.kafka_partition, 'offset', b.kafka_offset, 'record_hash', encode(b.record_hash, 'hex')))
FROM found b
UNION ALL
SELECT jsonb_build_object('at', l.loaded_at, 'what', 'in the lake and loaded to bronze', 'data', jsonb_build_object(
	'object', o.bucket || '/' || o.key, 'load', l.load_id, 'stage', l.stage, 'records', count(*)))
FROM found b JOIN etl.loads l USING (load_id) JOIN etl.objects o USING (object_id)
GROUP BY l.load_id, o.object_id
UNION ALL
SELECT jsonb_build_object('at', s.processed_at AT TIME ZONE 'UTC', 'what', 'features stored', 'data', to_jsonb(s) - 'record_hash' || jsonb_build_object('record_hash', encode(s.record_hash, 'hex')))
FROM feature_store.streaming_features s JOIN hashes h USING (record_hash)
UNION ALL
SELECT jsonb_build_object('at', p.predicted_at, 'what', 'predicted', 'data', to_jsonb(p))
FROM (SELECT DISTINCT user_id || ':' || product_id AS entity, event_time AT TIME ZONE 'UTC' AS "timestamp", record_hash FROM found) f
JOIN public.predictions p USING (entity, "timestamp")
UNION ALL
SELECT jsonb_build_object('at', coalesce(l.checked_at, l.gold_at), 'what', 'in gold', 'data', jsonb_build_object(
	'event_id', g.event_id::text, 'event', g.event_type, 'activity_count', g.activity_count, 'events_in_session', g.events_in_session, 'record_hash', encode(g.record_hash, 'hex')))
FROM dwh.fact_events g JOIN found b USING (record_hash) JOIN etl.loads l USING (load_id)
WHERE b.kafka_partition = (g.position >> 44)::int AND b.kafka_offset = (g.position & 17592186044415)`

	serverSQL = `
SELECT jsonb_build_object('at', m.timestamp, 'what', 'reading', 'data', to_jsonb(m))
FROM (SELECT * FROM public.server_metrics WHERE server_id = $1 ORDER BY timestamp DESC LIMIT 20) m`

	anomalySQL = `
SELECT jsonb_build_object('at', a.timestamp, 'what', 'anomaly of ' || coalesce(a.details ->> 'metric_name', a.anomaly_type), 'data', to_jsonb(a))
FROM (SELECT * FROM public.anomalies WHERE entity_id = $1 ORDER BY timestamp DESC LIMIT 50) a`

	predictionSQL = `
SELECT jsonb_build_object('at', p.predicted_at, 'what', 'prediction', 'data', to_jsonb(p))
FROM (SELECT * FROM public.predictions WHERE entity = $1 ORDER BY timestamp DESC LIMIT 50) p`

	// What was stored of events that tell of an entity at a time: arrays of both.
	readingsSQL = `
SELECT jsonb_build_object('at', m.created_at, 'what', 'reading stored', 'data', to_jsonb(m))
FROM unnest($1::text[], $2::timestamptz[]) u (entity, at) JOIN public.server_metrics m ON m.server_id = u.entity AND m.timestamp = u.at
UNION ALL
SELECT jsonb_build_object('at', a.created_at, 'what', 'anomaly stored', 'data', to_jsonb(a))
FROM unnest($1::text[], $2::timestamptz[]) u (entity, at) JOIN public.anomalies a ON a.entity_id = u.entity AND a.timestamp = u.at
UNION ALL
SELECT jsonb_build_object('at', p.created_at, 'what', 'prediction stored', 'data', to_jsonb(p))
FROM unnest($1::text[], $2::timestamptz[]) u (entity, at) JOIN public.predictions p ON p.entity = u.entity AND p.timestamp = u.at`

	alertSQL = `
SELECT jsonb_build_object('at', a.raised_at, 'what', 'alert ' || a.rule, 'data', to_jsonb(a))
FROM alerts.alerts a WHERE a.opened_id = ANY ($1::text[]) OR a.labels @> jsonb_build_object('entity_id', $2::text)
ORDER BY a.raised_at DESC LIMIT 20`
)

// said is what is told of events, by type.
var said = map[string]string{
	"dev.knative.kafka.event": "record taken from its topic",
	events.BehaviorRaw:        "event posted",
	events.BehaviorValidated:  "judged valid",
	events.BehaviorInvalid:    "judged invalid",
	events.MetricValidated:    "judged valid",
	events.MetricInvalid:      "judged invalid",
	events.FeaturesReady:      "features online",
	events.PredictionMade:     "predicted",
	events.AnomalyDetected:    "anomaly detected",
	events.AnomalyResolved:    "anomaly over",
	events.AlertRaised:        "alert raised",
}

// hop is the step as the story tells it.
func (s *step) hop() (hop, error) {
	attributes := map[string]string{}
	for _, a := range s.Attrs {
		attributes[a.Name] = a.Value
	}
	told := map[string]any{"event": attributes, "partition": s.partition, "offset": s.offset}
	if json.Valid(s.Data) {
		told["data"] = json.RawMessage(s.Data)
	} else if len(s.Data) > 0 {
		told["data_bytes"] = len(s.Data)
	}
	data, err := json.Marshal(told)
	what := cmp.Or(said[s.Get("type")], strings.TrimPrefix(s.Get("type"), "dev.millrace."))
	return hop{At: s.at.UTC(), What: what, Where: kafkaSource, Data: data}, err
}

// entity is whom the event tells of, and of when.
func (s *step) entity() (name string, at time.Time, ok bool) {
	var data struct {
		Entity    string    `json:"entity_id"`
		Timestamp time.Time `json:"timestamp"`
	}
	// Of other shapes there is nothing to look for.
	if json.Unmarshal(s.Data, &data) != nil || data.Timestamp.IsZero() {
		return "", at, false
	}
	name = cmp.Or(data.Entity, s.Get(events.PartitionKey))
	return name, data.Timestamp, name != ""
}

// story finds by an event's id, a trace's, a record's hash, a session or a server what
// it came from and what came of it, in the order of time: the events, as long as Kafka
// keeps them, and what is stored.
func (c *console) story(ctx context.Context, r *http.Request) (any, error) {
	q := strings.TrimSpace(r.URL.Query().Get("q"))
	if q == "" || len(q) > 300 {
		return nil, &failure{http.StatusBadRequest, "console", errors.New("q: must be an event's id, a trace's, a record's hash, a session or a server")}
	}
	if trace := traceOf(q); trace != "" {
		q = trace // a whole traceparent
	}
	if c.db == nil && len(c.kafka.Brokers) == 0 {
		return nil, unset(warehouseSource, "DATABASE_URL")
	}
	answer := map[string]any{"asked": q}
	hops := []hop{}
	ids, entities, times := []string{q}, []string{}, []time.Time{}
	if len(c.kafka.Brokers) > 0 {
		t, err := c.follow(ctx, q)
		if err != nil {
			// What is stored is told all the same.
			answer["unknown"] = fmt.Sprintf("%s: %v", kafkaSource, err)
		} else if !t.back.IsZero() {
			answer["searchedBack"] = t.back.UTC()
		}
		for _, s := range t.found {
			h, err := s.hop()
			if err != nil {
				return nil, err
			}
			hops = append(hops, h)
			ids = append(ids, s.Get("id"))
			if name, at, ok := s.entity(); ok {
				entities, times = append(entities, name), append(times, at)
			}
		}
	}
	if c.db != nil {
		stored, err := c.stored(ctx, q, ids, entities, times)
		if err != nil && len(hops) == 0 {
			return nil, err
		}
		if err != nil {
			answer["unknown"] = fmt.Sprintf("%s: %v", warehouseSource, err)
		}
		hops = append(hops, stored...)
	}
	slices.SortStableFunc(hops, func(a, b hop) int { return a.At.Compare(b.At) })
	answer["hops"] = hops
	return answer, nil
}

// stored are the rows of what was asked for, of events, and of entities at times.
func (c *console) stored(ctx context.Context, q string, ids, entities []string, times []time.Time) ([]hop, error) {
	var hops []hop
	for _, question := range []struct {
		sql  string
		args []any
	}{
		{recordsSQL, []any{ids, q}}, {readingsSQL, []any{entities, times}}, {serverSQL, []any{q}},
		{anomalySQL, []any{q}}, {predictionSQL, []any{q}}, {alertSQL, []any{ids, q}},
	} {
		list, err := c.rows(ctx, question.sql, question.args...)
		if isAbsent(err) {
			continue // tables of what does not run here
		}
		if err != nil {
			return hops, err
		}
		for _, text := range list {
			h := hop{Where: warehouseSource}
			if err := json.Unmarshal(text, &h); err != nil {
				return hops, fmt.Errorf("reading what was stored: %w", err)
			}
			hops = append(hops, h)
		}
	}
	return hops, nil
}
