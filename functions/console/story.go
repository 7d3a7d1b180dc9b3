package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// hop is one thing that an event caused.
type hop struct {
	At   time.Time       `json:"at"`
	What string          `json:"what"`
	Data json.RawMessage `json:"data"`
}

// storySQL are the statements that find what was stored of an event, each giving JSON
// of {at, what, data}. Those of behavior take a condition on bronze records, "b".
const (
	recordsSQL = `
WITH found AS (
	SELECT b.* FROM bronze.events b WHERE %COND% ORDER BY b.kafka_timestamp LIMIT 200
), hashes AS (SELECT DISTINCT record_hash FROM found)
SELECT jsonb_build_object('at', b.kafka_timestamp, 'what', 'validated', 'data', jsonb_build_object(
	'event', b.event_type, 'product_id', b.product_id, 'user_id', b.user_id, 'user_session', b.user_session, 'price', b.price,
	'event_time', b.event_time, 'id', b.ce_id, 'topic_partition', b.kafka_partition, 'offset', b.kafka_offset, 'record_hash', encode(b.record_hash, 'hex')))
FROM found b
UNION ALL
SELECT jsonb_build_object('at', l.loaded_at, 'what', 'in the lake and loaded to bronze', 'data', jsonb_build_object(
	'object', o.bucket || '/' || o.key, 'load', l.load_id, 'stage', l.stage, 'records', count(*)))
FROM found b JOIN etl.loads l USING (load_id) JOIN etl.objects o USING (object_id)
GROUP BY l.load_id, o.object_id
UNION ALL
SELECT jsonb_build_object('at', s.processed_at AT TIME ZONE 'UTC', 'what', 'features served', 'data', to_jsonb(s) - 'record_hash' || jsonb_build_object('record_hash', encode(s.record_hash, 'hex')))
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
SELECT jsonb_build_object('at', m.timestamp, 'what', 'reading stored', 'data', to_jsonb(m))
FROM (SELECT * FROM public.server_metrics WHERE server_id = $1 ORDER BY timestamp DESC LIMIT 20) m`

	anomalySQL = `
SELECT jsonb_build_object('at', a.timestamp, 'what', 'anomaly of ' || (a.details ->> 'metric_name'), 'data', to_jsonb(a))
FROM (SELECT * FROM public.anomalies WHERE entity_id = $1 ORDER BY timestamp DESC LIMIT 50) a`

	predictionSQL = `
SELECT jsonb_build_object('at', p.timestamp, 'what', 'predicted', 'data', to_jsonb(p))
FROM (SELECT * FROM public.predictions WHERE entity = $1 ORDER BY timestamp DESC LIMIT 50) p`

	alertSQL = `
SELECT jsonb_build_object('at', a.raised_at, 'what', 'alert ' || a.rule, 'data', to_jsonb(a))
FROM alerts.alerts a WHERE a.opened_id = $1 OR a.labels @> jsonb_build_object('entity_id', $1::text)
ORDER BY a.raised_at DESC LIMIT 20`
)

// hash is how a record's key is written.
var hash = regexp.MustCompile(`^[0-9a-f]{64}$`)

// story finds by an event's id, a record's hash, a session or a server what is stored
// about it, in the order of time.
func (c *console) story(ctx context.Context, r *http.Request) (any, error) {
	q := strings.TrimSpace(r.URL.Query().Get("q"))
	if q == "" || len(q) > 300 {
		return nil, &failure{http.StatusBadRequest, "console", errors.New("q: must be an event's id, a record's hash, a session or a server")}
	}
	condition := `b.ce_id = $1 OR b.record_hash IN (SELECT s.record_hash FROM silver.events s WHERE s.user_session = $1)`
	if hash.MatchString(q) {
		condition = `b.record_hash = decode($1, 'hex')`
	}
	hops := []hop{}
	for _, sql := range []string{strings.ReplaceAll(recordsSQL, "%COND%", condition), serverSQL, anomalySQL, predictionSQL, alertSQL} {
		list, err := c.rows(ctx, sql, q)
		if isAbsent(err) && c.db != nil {
			continue // tables of what does not run here
		}
		if err != nil {
			return nil, err
		}
		for _, text := range list {
			var h hop
			if err := json.Unmarshal(text, &h); err != nil {
				return nil, err
			}
			hops = append(hops, h)
		}
	}
	slices.SortStableFunc(hops, func(a, b hop) int { return a.At.Compare(b.At) })
	return map[string]any{"asked": q, "hops": hops}, nil
}
