package main

import (
	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/features"
)

// table is where events of one type go.
type table struct {
	// event is the type; contract is what the extension of that name has to be, empty
	// for any.
	event, contract string
	// also are further types whose events go there.
	also []string
	// name is the table's, with its schema.
	name string
	// columns are those that a row has; the others have their defaults.
	columns []string
	// key names the columns of the natural key, which has a unique index. Of rows
	// with one key the first stays.
	key []string
	// conflict is what becomes of a row whose key is there, "t" being that one, in SQL,
	// and order which of several in a batch is taken. Empty keeps the first.
	conflict, order string
	// series is the name in timeseries.tables of a table that is cut by time, and time
	// the column by which; write then sets the row's day. Empty of any other.
	series, time string
	// write appends an event's row, one value a column. An error is for good.
	write func(e *event.Event, r *row) error
}

// tables are all that events are written into, but for those of contracts.
var tables = []*table{streamingFeatures, predictions, anomalies}

// streamingFeatures are the features as served, at an event's first sight.
var streamingFeatures = &table{
	event: events.FeaturesReady,
	name:  "feature_store.streaming_features",
	columns: append([]string{"record_hash", "user_id", "product_id", "event_timestamp", "processed_at", "event_type", "user_session", "category_code"},
		featureNames()...),
	key: []string{"record_hash"},
	write: func(e *event.Event, r *row) error {
		m, err := features.ParseReady(e.Data())
		if err != nil {
			return err
		}
		r.bytes(m.RecordHash[:])
		r.int64(m.UserID)
		r.int64(m.ProductID)
		r.time(m.EventTimestamp)
		r.time(m.ProcessedAt)
		r.text("event_type", m.EventType)
		r.text("user_session", m.UserSession)
		r.orNull("category_code", m.CategoryCode)
		for i, f := range list {
			r.value(f.Name, f.Type, m.Features[i])
		}
		return r.err
	},
}

// list is that of all features.
var list = features.All()

func featureNames() []string {
	names := make([]string, len(list))
	for i, f := range list {
		names[i] = f.Name
	}
	return names
}

// value writes a feature's value; integers are bigint, numbers double precision.
func (r *row) value(name string, typ features.Type, v features.Value) {
	switch {
	case v.Null():
		r.null()
	case typ == features.Int64:
		r.int64(v.Int())
	case typ == features.Float64:
		r.float64(v.Float())
	default:
		r.text(name, v.Str())
	}
}
