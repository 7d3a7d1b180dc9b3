package main

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-dev/millrace/shared/features"
	"github.com/millrace-dev/millrace/shared/online"
)

// onlineRequest is the body of POST /get-online-features.
type onlineRequest struct {
	// Features are references like "user_product_features:price"; or Service names
	// a feature service.
	Features []string `json:"features"`
	Service  string   `json:"feature_service"`
	// Entities has a list for each join key, all of the same length.
	Entities map[string]json.RawMessage `json:"entities"`
	// FullFeatureNames prefixes features in the answer by their view.
	FullFeatureNames bool `json:"full_feature_names"`
}

// column is one feature of an answer.
type column struct {
	name  string
	view  int // in views
	place int // in features.All
}

var views = features.Views()

// entities are the rows of a request: the lists of those join keys that are there.
type entities struct {
	rows            int
	users, products []int64
	sessions        []string
	names           []string // in the order of the answer
}

// getOnlineFeatures looks many entities up, in one round trip. The answer has a
// column for each join key and feature, with a value, a status and an event
// timestamp for each entity.
func (a *api) getOnlineFeatures(ctx context.Context, body, dst []byte) ([]byte, error) {
	var request onlineRequest
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	columns, err := request.columns()
	if err != nil {
		return nil, err
	}
	e, err := a.entities(request.Entities)
	if err != nil {
		return nil, err
	}
	var keys []online.Key
	first := [2]int{-1, -1} // of a view's rows among the keys
	for i := range columns {
		v := columns[i].view
		if first[v] >= 0 {
			continue
		}
		first[v] = len(keys)
		for _, k := range views[v].JoinKeys {
			if !slices.Contains(e.names, k.Name) {
				return nil, refuse("entities should have a list %q, which view %s is looked up by", k.Name, views[v].Name)
			}
		}
		for row := range e.rows {
			if v == 0 {
				keys = append(keys, online.UserProduct(e.users[row], e.products[row]))
			} else {
				keys = append(keys, online.Session(e.sessions[row]))
			}
		}
	}
	rows, err := a.get(ctx, keys)
	if err != nil {
		return nil, err
	}
	dst = append(slices.Grow(dst, 256+(len(e.names)+len(columns))*e.rows*48), `{"metadata":{"feature_names":[`...)
	for i, name := range e.names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), name...), '"')
	}
	for i := range columns {
		dst = append(append(append(dst, `,"`...), columns[i].name...), '"')
	}
	dst = append(dst, `]},"results":[`...)
	for i, name := range e.names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = e.appendColumn(dst, name)
	}
	for i := range columns {
		c := &columns[i]
		dst = append(dst, ',')
		dst = appendColumn(dst, rows[first[c.view]:first[c.view]+e.rows], c.place)
	}
	return append(dst, "]}\n"...), nil
}

// columns finds the features that are asked for.
func (r *onlineRequest) columns() ([]column, error) {
	var list []column
	switch {
	case r.Service != "" && len(r.Features) > 0:
		return nil, refuse("there should be features or a feature_service, not both")
	case r.Service == features.Service:
		for _, place := range features.UserProduct.Features {
			list = append(list, column{all[place].Name, 0, place})
		}
	case r.Service != "":
		return nil, notFound("there is no feature service %q, only %q", r.Service, features.Service)
	case len(r.Features) == 0:
		return nil, refuse(`there should be features, like ["user_product_features:price"], or a feature_service, like %q`, features.Service)
	}
	for _, ref := range r.Features {
		viewName, name, ok := strings.Cut(ref, ":")
		if !ok {
			return nil, refuse("features: %q should be like view:feature", shorten([]byte(ref)))
		}
		v := slices.IndexFunc(views, func(v features.View) bool { return v.Name == viewName })
		if v < 0 {
			return nil, notFound("there is no feature view %q, only: %s", shorten([]byte(viewName)), viewNames())
		}
		place, ok := features.ByName(name)
		if !ok || !slices.Contains(views[v].Features, place) {
			return nil, notFound("feature view %s has no feature %q, only: %s", viewName, shorten([]byte(name)), featureNames(&views[v]))
		}
		list = append(list, column{name, v, place})
	}
	for i := range list {
		c := &list[i]
		if r.FullFeatureNames {
			c.name = views[c.view].Name + "__" + c.name
		}
		for _, before := range list[:i] {
			switch {
			case before.name != c.name:
			case before.view == c.view:
				return nil, refuse("features: %s:%s is there twice", views[c.view].Name, all[c.place].Name)
			default:
				return nil, refuse("features: %s is in several views; set full_feature_names to tell them apart", c.name)
			}
		}
	}
	return list, nil
}

func viewNames() string {
	var names []string
	for i := range views {
		names = append(names, views[i].Name)
	}
	return strings.Join(names, ", ")
}

func featureNames(v *features.View) string {
	var names []string
	for _, place := range v.Features {
		names = append(names, all[place].Name)
	}
	return strings.Join(names, ", ")
}

// entities reads the lists of a request, which are of one length.
func (a *api) entities(lists map[string]json.RawMessage) (*entities, error) {
	e := &entities{rows: -1}
	known := 0
	for _, k := range [...]string{"user_id", "product_id", "user_session"} {
		list, ok := lists[k]
		if !ok {
			continue
		}
		known++
		var n int
		var err error
		switch k {
		case "user_id":
			e.users, err = a.integers(k, list)
			n = len(e.users)
		case "product_id":
			e.products, err = a.integers(k, list)
			n = len(e.products)
		default:
			e.sessions, err = a.texts(k, list)
			n = len(e.sessions)
		}
		if err != nil {
			return nil, err
		}
		if e.rows >= 0 && n != e.rows {
			return nil, refuse("entities: %s has %d values and %s has %d; all lists should have the same length", k, n, e.names[0], e.rows)
		}
		e.rows = n
		e.names = append(e.names, k)
	}
	if known < len(lists) {
		for name := range lists {
			if !slices.Contains(e.names, name) {
				return nil, refuse("entities: there is no join key %q, only: user_id, product_id, user_session", shorten([]byte(name)))
			}
		}
	}
	if known == 0 {
		return nil, refuse(`entities should have a list for each join key, like {"user_id":[1],"product_id":[2]}`)
	}
	return e, nil
}

func (a *api) list(name string, list json.RawMessage) ([]json.RawMessage, error) {
	var values []json.RawMessage
	if err := json.Unmarshal(list, &values); err != nil || values == nil {
		return nil, refuse("entities: %s should be a list", name)
	}
	if len(values) > a.MaxEntities {
		return nil, &problem{http.StatusRequestEntityTooLarge,
			refuse("%s has %d values, %d are allowed in a request (API_MAX_ENTITIES)", name, len(values), a.MaxEntities)}
	}
	return values, nil
}

func (a *api) integers(name string, list json.RawMessage) ([]int64, error) {
	values, err := a.list(name, list)
	if err != nil {
		return nil, err
	}
	numbers := make([]int64, len(values))
	for i, v := range values {
		if numbers[i], err = parseID(name+"["+strconv.Itoa(i)+"]", v); err != nil {
			return nil, err
		}
	}
	return numbers, nil
}

func (a *api) texts(name string, list json.RawMessage) ([]string, error) {
	values, err := a.list(name, list)
	if err != nil {
		return nil, err
	}
	texts := make([]string, len(values))
	for i, v := range values {
		if len(v) < 3 || v[0] != '"' || json.Unmarshal(v, &texts[i]) != nil || utf8.RuneCountInString(texts[i]) > 255 {
			return nil, refuse("%s[%d] should be a string of 1 to 255 characters, is %s", name, i, shorten(v))
		}
	}
	return texts, nil
}

func (e *entities) appendColumn(dst []byte, name string) []byte {
	dst = append(dst, `{"values":[`...)
	for i := range e.rows {
		if i > 0 {
			dst = append(dst, ',')
		}
		switch name {
		case "user_id":
			dst = strconv.AppendInt(dst, e.users[i], 10)
		case "product_id":
			dst = strconv.AppendInt(dst, e.products[i], 10)
		default:
			dst = features.OfString(e.sessions[i]).AppendJSON(dst)
		}
	}
	dst = append(dst, `],"statuses":[`...)
	dst = repeat(dst, `"PRESENT"`, e.rows)
	dst = append(dst, `],"event_timestamps":[`...)
	dst = repeat(dst, noTimestamp, e.rows)
	return append(dst, "]}"...)
}

// noTimestamp is what Feast gives for values that belong to no event.
const noTimestamp = `"1970-01-01T00:00:00Z"`

func repeat(dst []byte, text string, n int) []byte {
	for i := range n {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, text...)
	}
	return dst
}

func appendColumn(dst []byte, rows []online.Row, place int) []byte {
	dst = append(dst, `{"values":[`...)
	for i := range rows {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = rows[i].Features[place].AppendJSON(dst)
	}
	dst = append(dst, `],"statuses":[`...)
	for i := range rows {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(append(append(dst, '"'), valueStatus(&rows[i], place)...), '"')
	}
	dst = append(dst, `],"event_timestamps":[`...)
	for i := range rows {
		if i > 0 {
			dst = append(dst, ',')
		}
		if rows[i].Found {
			dst = appendTimestamp(dst, rows[i].EventTime)
		} else {
			dst = append(dst, noTimestamp...)
		}
	}
	return append(dst, "]}"...)
}

// pushSuffix makes the name of a view's push source.
const pushSuffix = "_push_source"

// push writes rows where nothing newer is there, and answers how many were.
func (a *api) push(ctx context.Context, body, dst []byte) ([]byte, error) {
	var request struct {
		Source string                     `json:"push_source_name"`
		Frame  map[string]json.RawMessage `json:"df"`
		To     string                     `json:"to"`
	}
	if err := decode(body, &request); err != nil {
		return nil, err
	}
	v := slices.IndexFunc(views, func(v features.View) bool { return v.Name+pushSuffix == request.Source })
	if v < 0 {
		return nil, notFound("there is no push source %q, only: %s, %s", shorten([]byte(request.Source)), views[0].Name+pushSuffix, views[1].Name+pushSuffix)
	}
	switch request.To {
	case "", "online":
	case "offline", "online_and_offline", "both":
		return nil, refuse("to should be online: offline features are those that were served, which no client writes")
	default:
		return nil, refuse("to should be online, is %q", shorten([]byte(request.To)))
	}
	rows, err := a.pushed(v, request.Frame)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	written, err := a.store.Push(ctx, rows)
	a.metrics.roundTrip(ctx, "push", start, err)
	if err != nil {
		return nil, err
	}
	a.metrics.wrote(ctx, "push", written)
	dst = strconv.AppendInt(append(dst, `{"rows":`...), int64(len(rows)), 10)
	dst = strconv.AppendInt(append(dst, `,"written":`...), int64(written), 10)
	return append(dst, "}\n"...), nil
}

// pushed reads the columns of a frame: all join keys and features of the view, and
// event_timestamp. Other columns are let through, since frames have more of them.
func (a *api) pushed(v int, frame map[string]json.RawMessage) ([]online.Pushed, error) {
	view := &views[v]
	columns := map[string][]json.RawMessage{}
	rows, first := -1, ""
	column := func(name string) error {
		list, ok := frame[name]
		if !ok {
			return refuse("df should have a column %q", name)
		}
		values, err := a.list("df."+name, list)
		if err != nil {
			return err
		}
		if rows < 0 {
			rows, first = len(values), name
		} else if len(values) != rows {
			return refuse("df: column %s has %d values and %s has %d", name, len(values), first, rows)
		}
		columns[name] = values
		return nil
	}
	for _, k := range view.JoinKeys {
		if err := column(k.Name); err != nil {
			return nil, err
		}
	}
	if err := column("event_timestamp"); err != nil {
		return nil, err
	}
	for _, place := range view.Features {
		if err := column(all[place].Name); err != nil {
			return nil, err
		}
	}
	list := make([]online.Pushed, rows)
	for i := range list {
		row := &list[i]
		at := "[" + strconv.Itoa(i) + "]"
		if v == 0 {
			user, err := parseID("df.user_id"+at, columns["user_id"][i])
			if err != nil {
				return nil, err
			}
			product, err := parseID("df.product_id"+at, columns["product_id"][i])
			if err != nil {
				return nil, err
			}
			row.Key = online.UserProduct(user, product)
		} else {
			value := columns["user_session"][i]
			var session string
			if json.Unmarshal(value, &session) != nil || session == "" || utf8.RuneCountInString(session) > 255 {
				return nil, refuse("df.user_session%s should be a string of 1 to 255 characters, is %s", at, shorten(value))
			}
			row.Key = online.Session(session)
		}
		var err error
		if row.EventTime, err = parsePushTime(columns["event_timestamp"][i]); err != nil {
			return nil, refuse("df.event_timestamp%s should be a time like 2022-05-13 10:59:42, in UTC unless it says otherwise, is %s", at,
				shorten(columns["event_timestamp"][i]))
		}
		for _, place := range view.Features {
			value := columns[all[place].Name][i]
			if row.Features[place], err = all[place].ParseJSON(value); err != nil {
				return nil, refuse("df.%s%s: %w", all[place].Name, at, err)
			}
		}
		if n := row.Features[features.ActivityCount]; v == 1 && (n.Null() || n.Int() < 1 || n.Int() > maxActivity) {
			return nil, refuse("df.activity_count%s should be between 1 and %d, since it orders the rows of a session", at, maxActivity)
		}
	}
	return list, nil
}

const maxActivity = 999_999_999

// pushTimes are the ways in which clients write times; without a zone it is UTC.
var pushTimes = []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02T15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05 UTC"}

func parsePushTime(value json.RawMessage) (t time.Time, err error) {
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return t, err
	}
	for _, layout := range pushTimes {
		if t, err = time.Parse(layout, text); err == nil {
			break
		}
	}
	if year := t.UTC().Year(); err == nil && (year < 1 || year > 9999) {
		return t, strconv.ErrRange
	}
	return t.UTC(), err
}
