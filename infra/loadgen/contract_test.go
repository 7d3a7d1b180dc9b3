package main

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/millrace-dev/millrace/infra/loadgen/internal/shape"
	"github.com/millrace-dev/millrace/infra/loadgen/internal/shop"
	"github.com/millrace-dev/millrace/shared/contract"
)

// The generator's idea of good and bad is the contracts': what it counts as good
// is accepted and what it counts as bad refused, in every format.
func TestMessages_areWhatTheContractSays(t *testing.T) {
	contracts, err := contract.Load(contract.Embedded())
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{"zoned", "zoned-fraction", "space", "space-fraction", "micros", "millis"}
	for _, format := range []shape.Format{shape.Connect, shape.CDCFlat, shape.CDCFull} {
		stream, ok := contracts.ByTopic(format.Topic())
		if !ok {
			t.Fatalf("no contract for topic %s", format.Topic())
		}
		for _, name := range texts {
			if format == shape.Connect && name != "zoned" {
				continue
			}
			text, err := shape.ParseTimeText(name)
			if err != nil {
				t.Fatal(err)
			}
			encoder := shape.NewEncoder(format, text)
			sim, err := shop.New(shop.Config{Seed: 1, Start: firstDay, Density: 20, Products: 1000, Users: 1000})
			if err != nil {
				t.Fatal(err)
			}
			changes, err := shape.NewChanges(1, 0.1, 0.1)
			if err != nil {
				t.Fatal(err)
			}
			kinds, err := shape.ParseKinds("all", format)
			if err != nil {
				t.Fatal(err)
			}
			var ev shop.Event
			wrong := 0
			for i := range 2000 {
				sim.Next(&ev)
				for _, c := range changes.Insert(&ev) {
					value := encoder.Append(nil, &c)
					if v := stream.Check(value, time.Now()); v.Outcome != contract.Valid || v.Key != ev.Session && c.Op == 'c' {
						if wrong++; wrong < 3 {
							t.Errorf("%v, %s, op %c: a good message gets %v (%s), key %q:\n%s", format, name, c.Op, v.Outcome, v.ErrorMessage, v.Key, value)
						}
					}
				}
				kind := kinds[i%len(kinds)]
				value := encoder.AppendBad(nil, &shape.Change{Op: 'c', After: &ev}, kind, rand.NewPCG(uint64(i), 0))
				if v := stream.Check(value, time.Now()); v.Outcome != contract.Invalid {
					if wrong++; wrong < 20 {
						t.Errorf("%v, %s: %v gets %v:\n%s", format, name, kind, v.Outcome, value)
					}
				}
			}
		}
	}
}
