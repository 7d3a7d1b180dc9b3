package main

import (
	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
)

// companion is a part that runs beside the stores and functions: this program with
// another command, restarted like a function. It is started when all stores are
// ready, and stopped before they are.
type companion struct {
	name string
	// spec says how to start it; false leaves it out.
	spec func(w *parts) (supervise.Spec, bool, error)
}

// companions are all there are.
var companions = []companion{
	{"cdc", (*parts).cdcSpec},
	{rowProducer, (*parts).rowProducerSpec},
	{meterProducer, (*parts).meterProducerSpec},
}

// startCompanions starts those that this platform has.
func (r *runner) startCompanions() error {
	for _, c := range companions {
		spec, wanted, err := c.spec(r.parts)
		if err != nil {
			return err
		}
		if !wanted {
			continue
		}
		child, err := r.sup.Start(spec)
		if err != nil {
			return err
		}
		r.companions = append(r.companions, child)
	}
	return nil
}
