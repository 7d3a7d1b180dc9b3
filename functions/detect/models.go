package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/anomaly"
)

// shownModel is a metric of an entity at GET /models.
type shownModel struct {
	Contract string `json:"contract"`
	Entity   string `json:"entity"`
	Metric   string `json:"metric"`
	// Status is seasonal; level, while there is no season or it is not known yet; or
	// warming, while the history is too short for any model.
	Status    string     `json:"status"`
	TrainedAt *time.Time `json:"trained_at,omitempty"`
	Age       float64    `json:"age_seconds,omitempty"`
	From      *time.Time `json:"from,omitempty"`
	To        *time.Time `json:"to,omitempty"`
	Points    int        `json:"points,omitempty"`
	Level     float64    `json:"level,omitempty"`
	Up        float64    `json:"deviation_above,omitempty"`
	Down      float64    `json:"deviation_below,omitempty"`
}

// shownForest is a forest at GET /models.
type shownForest struct {
	Model     string     `json:"model"`
	Version   string     `json:"version"`
	TrainedAt *time.Time `json:"trained_at,omitempty"`
	Error     string     `json:"error,omitempty"`
}

// maxShown bounds the entities of an answer.
const maxShown = 500

// serveModels shows the models as Redis has them: all, or those of ?contract= and
// ?entity=.
func (d *detector) serveModels(w http.ResponseWriter, r *http.Request) {
	answer := struct {
		Models  []shownModel  `json:"models"`
		Forests []shownForest `json:"forests"`
		// Left is how many entities are not in the answer: ask for one of them.
		Left int `json:"entities_left_out"`
	}{Models: []shownModel{}, Forests: []shownForest{}}
	names := make([]string, 0, len(d.streams))
	for name := range d.streams {
		if only := r.URL.Query().Get("contract"); only == "" || only == name {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	room := maxShown
	for _, name := range names {
		list, left, err := d.shown(r, d.streams[name], room)
		if err != nil {
			http.Error(w, fmt.Sprintf("%v", err), http.StatusServiceUnavailable)
			return
		}
		answer.Models, answer.Left = append(answer.Models, list...), answer.Left+left
		room = max(0, room-len(list)/max(1, len(d.streams[name].plan.Metrics)))
	}
	for name, s := range d.forests.by {
		f := shownForest{Model: name}
		var trained time.Time
		if f.Version, trained = s.forest.Version(); !trained.IsZero() {
			f.TrainedAt = &trained
		}
		s.mu.Lock()
		f.Error = s.said
		s.mu.Unlock()
		answer.Forests = append(answer.Forests, f)
	}
	w.Header().Set("Content-Type", event.ApplicationJSON)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(answer) // a client that is gone needs no answer
}

func (d *detector) shown(r *http.Request, s *stream, room int) (list []shownModel, left int, err error) {
	entities := []string{r.URL.Query().Get("entity")}
	if entities[0] == "" {
		if entities, err = d.store.entities(r.Context(), s.plan.Contract); err != nil {
			return nil, 0, err
		}
	}
	slices.Sort(entities)
	if len(entities) > room {
		left, entities = len(entities)-room, entities[:room]
	}
	if len(entities) == 0 {
		return nil, left, nil
	}
	keys := make([]string, len(entities))
	for i, name := range entities {
		keys[i] = modelKey(s.plan.Contract, name)
	}
	blobs, err := d.store.read(r.Context(), keys, nil)
	if err != nil {
		return nil, 0, err
	}
	now := d.now()
	for i, entity := range entities {
		models, err := anomaly.ParseModels([]byte(blobs[i]))
		if err != nil {
			models = nil // it is not used either
		}
		for at, metric := range s.plan.Metrics {
			if !s.plan.Learnt[at] {
				continue
			}
			m := models[metric]
			v := shownModel{Contract: s.plan.Contract, Entity: entity, Metric: metric, Status: status(m)}
			if m != nil {
				v.TrainedAt, v.Age = &m.Trained, now.Sub(m.Trained).Seconds()
				v.From, v.To, v.Points, v.Level, v.Up, v.Down = &m.From, &m.To, m.Points, m.Level, m.Up, m.Down
			}
			list = append(list, v)
		}
	}
	return list, left, nil
}
