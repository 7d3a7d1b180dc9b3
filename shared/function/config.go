package function

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
)

// Config is what a function's runtime reads from the environment, by envconfig. A
// zero field takes the default that is named here, so tests can use a literal.
type Config struct {
	// Name names the function in reply ids, sources, logs and metrics. Changing it
	// changes the ids of all replies. Default: K_SERVICE, which Knative sets.
	Name string `envconfig:"FUNCTION_NAME"`

	// Host is the address to listen on; empty means all of the machine's.
	Host string `envconfig:"LISTEN_HOST"`
	// Port is the port to listen on; 8080 by default, as Knative expects.
	Port int `envconfig:"PORT"`

	// MaxEventBytes bounds one event's data; 1 MiB by default, what Knative's
	// Kafka parts carry. More is answered with 413.
	MaxEventBytes int `envconfig:"MAX_EVENT_BYTES"`
	// MaxBodyBytes bounds the body of a structured or batch request; 16 MiB by
	// default.
	MaxBodyBytes int `envconfig:"MAX_BODY_BYTES"`
	// MaxInFlightBytes bounds the bodies that are held at one time; 64 MiB by
	// default. Lower it where memory is short; more is answered with 429 before
	// the body is read.
	MaxInFlightBytes int `envconfig:"MAX_IN_FLIGHT_BYTES"`

	// MaxBatch bounds the events of one handler call; 1000 by default.
	MaxBatch int `envconfig:"MAX_BATCH"`
	// MaxQueue bounds the events that wait for a handler call; 10000 by default.
	// More are answered with 429.
	MaxQueue int `envconfig:"MAX_QUEUE"`
	// Concurrency bounds the handler calls that run at one time; by default one a
	// CPU (GOMAXPROCS). Set 1 to get the largest batches, more where the handler
	// mostly waits for something that can serve several calls at once.
	Concurrency int `envconfig:"CONCURRENCY"`

	// HandlerTimeout bounds one handler call, through its context; 30 s by default.
	HandlerTimeout time.Duration `envconfig:"HANDLER_TIMEOUT"`
	// ReadTimeout bounds the reading of one request; 30 s by default.
	ReadTimeout time.Duration `envconfig:"READ_TIMEOUT"`
	// IdleTimeout is how long an idle connection is kept; 120 s by default, longer
	// than Knative's proxies keep theirs, so that they are the ones to close.
	IdleTimeout time.Duration `envconfig:"IDLE_TIMEOUT"`
	// DrainTimeout bounds the finishing of what is in flight after SIGTERM; 25 s by
	// default.
	DrainTimeout time.Duration `envconfig:"DRAIN_TIMEOUT"`
}

func (c Config) withDefaults() Config {
	c.Name = cmp.Or(c.Name, os.Getenv("K_SERVICE"))
	c.Port = cmp.Or(c.Port, 8080)
	c.MaxEventBytes = cmp.Or(c.MaxEventBytes, 1<<20)
	c.MaxBodyBytes = cmp.Or(c.MaxBodyBytes, 16<<20)
	c.MaxInFlightBytes = cmp.Or(c.MaxInFlightBytes, 64<<20)
	c.MaxBatch = cmp.Or(c.MaxBatch, 1000)
	c.MaxQueue = cmp.Or(c.MaxQueue, 10000)
	c.Concurrency = cmp.Or(c.Concurrency, runtime.GOMAXPROCS(0))
	c.HandlerTimeout = cmp.Or(c.HandlerTimeout, 30*time.Second)
	c.ReadTimeout = cmp.Or(c.ReadTimeout, 30*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 120*time.Second)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 25*time.Second)
	return c
}

func (c Config) check() error {
	if c.Name == "" {
		return errors.New("FUNCTION_NAME: required (no K_SERVICE to take it from)")
	}
	if c.Port < 0 || c.Port > 65535 {
		return fmt.Errorf("PORT=%d: must be between 0 and 65535", c.Port)
	}
	for _, v := range []struct {
		name  string
		value int
	}{
		{"MAX_EVENT_BYTES", c.MaxEventBytes},
		{"MAX_BODY_BYTES", c.MaxBodyBytes},
		{"MAX_IN_FLIGHT_BYTES", c.MaxInFlightBytes},
		{"MAX_BATCH", c.MaxBatch},
		{"MAX_QUEUE", c.MaxQueue},
		{"CONCURRENCY", c.Concurrency},
		{"HANDLER_TIMEOUT", int(c.HandlerTimeout)},
		{"READ_TIMEOUT", int(c.ReadTimeout)},
		{"IDLE_TIMEOUT", int(c.IdleTimeout)},
		{"DRAIN_TIMEOUT", int(c.DrainTimeout)},
	} {
		if v.value < 1 {
			return fmt.Errorf("%s: must be greater than 0", v.name)
		}
	}
	if largest := max(c.MaxBodyBytes, c.MaxEventBytes); c.MaxInFlightBytes < largest {
		return fmt.Errorf("MAX_IN_FLIGHT_BYTES=%d: must hold the largest body, %d", c.MaxInFlightBytes, largest)
	}
	return nil
}
