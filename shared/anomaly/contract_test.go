package anomaly

import (
	"context"
	"math"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/millrace-dev/millrace/shared/contract"
	"github.com/millrace-dev/millrace/shared/model"
)

// Every metric of the contracts that ship is judged, those of applications too.
func TestAllMetricsAreJudged(t *testing.T) {
	contracts, err := contract.Open("")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contracts.Contracts() {
		p, err := NewPlan(c, &Forest{})
		if err != nil {
			t.Fatal(err)
		}
		if p == nil {
			if len(c.Metrics()) > 0 {
				t.Errorf("%s has metrics and no plan", c.Name)
			}
			continue
		}
		judged := map[string]bool{}
		for _, ch := range p.Channels {
			judged[ch.Metric] = true
		}
		for _, f := range c.Metrics() {
			if !judged[f.Name] {
				t.Errorf("%s: nobody judges %s", c.Name, f.Name)
			}
		}
	}
}

const scales = `name: scales
kind: json
topics: [scales]
verdicts: {valid: dev.example.scale.validated.v1, invalid: dev.example.scale.invalid.v1}
key: site
entity: scale
eventTime: at
naturalKey: [scale, pan, at]
detect:
  rules:
    - {field: weight, above: 9, severity: high}
fields:
  - {name: site, type: string}
  - {name: scale, type: int64}
  - {name: pan, type: string}
  - {name: at, type: timestamp, formats: [rfc3339]}
  - {name: weight, type: double, metric: true, nullable: true}
  - {name: pieces, type: int64, metric: true, optional: true}
`

// A contract of one's own, without a word about detectors.
func TestPlanOfAnyContract(t *testing.T) {
	set, err := contract.Load(fstest.MapFS{"scales.yaml": {Data: []byte(scales)}})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := set.Contract("scales")
	p, err := NewPlan(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, ch := range p.Channels {
		types = append(types, ch.Type)
	}
	if diff := cmp.Diff([]string{"stl_zscore_weight", "stl_zscore_pieces", "threshold_above_weight"}, types); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if p.EntityType != "scales" || p.Floors[1] != 0.5 {
		t.Errorf("%+v", p)
	}
	stream, _ := set.ByTopic("scales")
	reader := c.Reader()
	fill := func(text string) Reading {
		t.Helper()
		v := stream.Check([]byte(text), noon)
		values, err := reader.Read(v.Body)
		if err != nil {
			t.Fatalf("%v: %s", err, v.Body)
		}
		var r Reading
		if err := p.Fill(&r, values); err != nil {
			t.Fatal(err)
		}
		return r
	}
	a := fill(`{"site":"north","scale":7,"pan":"left","at":"2026-03-12T12:00:00.5Z","weight":1.25,"pieces":3}`)
	if a.Entity != "7" || !a.Time.Equal(noon.Add(time.Second/2)) || a.Values[0] != 1.25 || a.Values[1] != 3 {
		t.Errorf("%+v", a)
	}
	b := fill(`{"site":"north","scale":7,"pan":"right","at":"2026-03-12T12:00:00.5Z","weight":null}`)
	if a.Key == b.Key || !math.IsNaN(b.Values[0]) || !math.IsNaN(b.Values[1]) {
		t.Errorf("%+v", b)
	}
	if again := fill(`{"site":"north","scale":7,"pan":"left","at":"2026-03-12T12:00:00.5Z","weight":2}`); again.Key != a.Key {
		t.Error("the same reading has two keys")
	}
}

func starter(t testing.TB) *model.Bundle {
	t.Helper()
	b, err := model.Load(context.Background(), model.Folder("../../infra/training/starter/anomaly"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestForest(t *testing.T) {
	var f Forest
	names := []string{"cpu_usage_percent", "memory_usage_percent", "memory_available_gb", "disk_usage_percent", "disk_read_mbps",
		"disk_write_mbps", "network_rx_mbps", "network_tx_mbps", "cpu_temperature_celsius", "power_consumption_watts"}
	d := f.of(names)
	l := DefaultLimits()
	usual := &Reading{Time: noon, Values: []float64{30, 42, 36, 55, 24, 18, 160, 160, 50, 250}}
	if j := d.Judge(&l, nil, usual, math.NaN(), 0); j.Known {
		t.Error("it judges without a model")
	}
	if err := f.Use(starter(t), "1"); err != nil {
		t.Fatal(err)
	}
	if j := d.Judge(&l, nil, usual, math.NaN(), 0); !j.Known || j.Distance > 2 || j.Model != "forest 1" {
		t.Errorf("usual: %+v", j)
	}
	odd := &Reading{Time: noon, Values: []float64{99, 42, 36, 55, 24, 18, 160, 160, 80, 420}}
	j := d.Judge(&l, nil, odd, math.NaN(), 0)
	if !j.Known || j.Distance < 3 {
		t.Errorf("odd: %+v", j)
	}
	// Who is always a little odd is not an anomaly for ever.
	if later := d.Judge(&l, nil, odd, 2, time.Second); later.Distance > j.Distance-1.9 {
		t.Errorf("with a level: %+v", later)
	}
	bad := starter(t)
	bad.Baseline.Score.Counts = make([]int64, len(bad.Baseline.Score.Counts))
	if err := f.Use(bad, "2"); err == nil || !strings.Contains(err.Error(), "no usable distribution") {
		t.Error(err)
	}
	if version, _ := f.Version(); version != "1" {
		t.Errorf("version %s judges", version)
	}
}

// BenchmarkObserve judges readings of ten metrics, one server's, all of them in order.
func BenchmarkObserve(b *testing.B) {
	contracts, err := contract.Open("")
	if err != nil {
		b.Fatal(err)
	}
	c, _ := contracts.Contract("datacenter-server")
	p, err := NewPlan(c, &Forest{})
	if err != nil {
		b.Fatal(err)
	}
	m := learn(b, history(noon, 14, 1, 1, day))
	e := &Entity{Models: make([]*Model, len(p.Metrics))}
	r := reading(0, 0)
	r.Values = make([]float64, len(p.Metrics))
	for i := range e.Models {
		e.Models[i], r.Values[i] = m, day(noon)
	}
	var s State
	var events []Event
	var text []byte
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		r.Time = noon.Add(time.Duration(i) * time.Second)
		events, _, _ = p.Observe(&s, e, r, events[:0])
		text = p.AppendState(text[:0], &s)
		i++
	}
	b.ReportMetric(float64(len(text)), "state-bytes")
}
