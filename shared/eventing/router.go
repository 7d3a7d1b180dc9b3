package eventing

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/millrace-dev/millrace/shared/events"
)

// discarded is the topic that stands for none.
const discarded = "-"

// routerOutlet writes events to topics by their type.
type routerOutlet struct {
	to     Destination
	byType map[string]*topicOutlet // nil: discard
	// topics are the different ones, in the order of their names.
	topics []*topicOutlet
}

func newRouterOutlet(e *Engine, to Destination, r *Router) *routerOutlet {
	out := &routerOutlet{to: to, byType: map[string]*topicOutlet{}}
	byName := map[string]*topicOutlet{discarded: nil}
	for _, typ := range slices.Sorted(maps.Keys(r.Topics)) {
		name := r.Topics[typ]
		t, ok := byName[name]
		if !ok {
			t = &topicOutlet{engine: e, to: to, topic: name, structured: r.Structured}
			byName[name] = t
			out.topics = append(out.topics, t)
		}
		out.byType[typ] = t
	}
	slices.SortFunc(out.topics, func(a, b *topicOutlet) int { return strings.Compare(a.topic, b.topic) })
	return out
}

func (r *routerOutlet) address() string { return "router:///" + r.to.Namespace + "/" + r.to.Name }

// send writes nothing when any of the events has no topic.
func (r *routerOutlet) send(ctx context.Context, ms []events.Message) outcome {
	groups := make(map[*topicOutlet][]events.Message, 1)
	for i := range ms {
		typ := ms[i].Get("type")
		t, ok := r.byType[typ]
		if !ok {
			if t, ok = r.byType["*"]; !ok {
				err := fmt.Errorf("no topic is configured for events of type %q", typ)
				return outcome{err: err, status: http.StatusBadRequest, detail: []byte(err.Error()), final: true}
			}
		}
		if t != nil {
			groups[t] = append(groups[t], ms[i])
		}
	}
	for t, group := range groups {
		if o := t.send(ctx, group); o.err != nil {
			return o
		}
	}
	return outcome{}
}
