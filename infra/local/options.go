package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/kelseyhightower/envconfig"
	"github.com/redis/go-redis/v9"

	"github.com/millrace-dev/millrace/shared/kafka"
	"github.com/millrace-dev/millrace/shared/lake"
)

// What the embedded S3 accepts unless S3_ACCESS_KEY and S3_SECRET_KEY say otherwise.
// It listens on the loopback interface only.
const (
	defaultRegion    = "us-east-1"
	defaultAccessKey = "millrace"
	defaultSecretKey = "millrace-secret"
)

// options are what the user asked for.
type options struct {
	root  string // the checkout: functions/, triggers/, infra/
	state string
	bin   string

	rate   string // messages a second of the shop producer, for loadgen to parse
	noLoad bool
	// noLearning leaves out MLflow and the trainer.
	noLearning bool
	plain      bool // no screen
	// functions are those to run; all when there are none.
	functions []string

	portBase int
	ports    portFlags

	createTopics bool
	kafkaBytes   int64 // for all partitions of the embedded Kafka together
	minFree      int64 // bytes

	// External parts; nil means the embedded one.
	kafka    *kafka.Config
	s3       *lake.Config
	database string // DATABASE_URL
	redis    string // REDIS_URL
}

// portFlags are the ports that were given by name.
type portFlags map[string]int

func (p portFlags) String() string { return "" }

func (p portFlags) Set(text string) error {
	name, number, ok := strings.Cut(text, "=")
	port, err := strconv.Atoi(number)
	if !ok || name == "" || err != nil || port < 1 || port > 65535 {
		return errors.New("want name=port, as in kafka=9192")
	}
	p[name] = port
	return nil
}

// parseOptions reads flags, and environment variables where a flag is absent.
func parseOptions(args []string, stdout, stderr io.Writer) (opts options, done bool, err error) {
	opts.ports = portFlags{}
	fs := flag.NewFlagSet("up", flag.ContinueOnError)
	fs.StringVar(&opts.root, "root", or(os.Getenv("MILLRACE_ROOT"), "."), "the checkout, with functions/ and triggers/ (env MILLRACE_ROOT)")
	fs.StringVar(&opts.state, "state", os.Getenv("MILLRACE_STATE"), "folder of data, logs and settings; default .local in the checkout (env MILLRACE_STATE)")
	fs.StringVar(&opts.bin, "bin", os.Getenv("MILLRACE_BIN"), "folder of the built programs; default that of this one (env MILLRACE_BIN)")
	fs.StringVar(&opts.rate, "rate", or(os.Getenv("RATE"), "1000"), "shop events a second, 0 as fast as possible (env RATE)")
	fs.BoolVar(&opts.noLoad, "no-load", truth(os.Getenv("NO_LOAD")), "do not start the shop producer (env NO_LOAD=1)")
	fs.BoolVar(&opts.noLearning, "no-learning", truth(os.Getenv("NO_LEARNING")), "train no models: no MLflow, no trainer, and no Python environment for them (env NO_LEARNING=1)")
	fs.BoolVar(&opts.plain, "plain", truth(os.Getenv("MILLRACE_PLAIN")), "lines instead of the live screen, as when standard output is no terminal (env MILLRACE_PLAIN=1)")
	chosen := fs.String("functions", os.Getenv("MILLRACE_FUNCTIONS"), "run only these functions, as in validate,lake, with what they need of stores and event graph; default all (env MILLRACE_FUNCTIONS)")
	base, baseErr := envInt("MILLRACE_PORT_BASE", 0)
	fs.IntVar(&opts.portBase, "port-base", int(base), "put all ports in a row from this one on (env MILLRACE_PORT_BASE)")
	fs.Var(opts.ports, "port", "`name=port` of one part: ingress, kafka, s3, postgres, redis, mlflow or a function; may be repeated (env MILLRACE_PORT_<NAME>)")
	fs.BoolVar(&opts.createTopics, "create-topics", os.Getenv("CREATE_TOPICS") == "" || truth(os.Getenv("CREATE_TOPICS")), "create missing topics (env CREATE_TOPICS=0 to only check them)")
	bytes, bytesErr := envInt("MILLRACE_KAFKA_BYTES", 0)
	fs.Int64Var(&opts.kafkaBytes, "kafka-bytes", bytes, "most that the embedded Kafka keeps on disk; default 2 GiB, or a quarter of the free space when that is less (env MILLRACE_KAFKA_BYTES)")
	minFree, freeErr := envInt("MILLRACE_MIN_FREE", 1<<30)
	fs.Int64Var(&opts.minFree, "min-free", minFree, "stop the producer when the disk has fewer free bytes than this (env MILLRACE_MIN_FREE)")
	if err := errors.Join(baseErr, bytesErr, freeErr); err != nil {
		return opts, true, err
	}
	const about = `Runs the platform on this machine until Ctrl-C: embedded Kafka and S3, the machine's
PostgreSQL and Redis, every function in functions/ as its own process, the event graph
in triggers/ and a shop producer.

KAFKA_BROKERS, S3_ENDPOINT (with S3_ACCESS_KEY and S3_SECRET_KEY), DATABASE_URL and
REDIS_URL replace these parts by yours; POSTGRES_BIN names the folder of PostgreSQL's
programs; CONTRACTS_DIR adds stream contracts and TRIGGERS_DIR manifests.`
	if done, err := parse(fs, args, about, stdout, stderr); done {
		return opts, true, err
	}
	opts.functions = strings.FieldsFunc(*chosen, func(r rune) bool { return r == ',' || r == ' ' })
	err = opts.complete()
	return opts, false, err
}

func (o *options) complete() error {
	var err error
	if o.root, err = filepath.Abs(o.root); err != nil {
		return fmt.Errorf("finding the checkout: %w", err)
	}
	if o.state == "" {
		o.state = filepath.Join(o.root, ".local")
	}
	if o.state, err = filepath.Abs(o.state); err != nil {
		return fmt.Errorf("finding the state folder: %w", err)
	}
	if o.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("finding this program: %w", err)
		}
		o.bin = filepath.Dir(self)
	}
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return fmt.Errorf("finding the programs: %w", err)
	}
	if _, err := strconv.ParseFloat(o.rate, 64); err != nil {
		return fmt.Errorf("the rate (--rate, RATE) is %q; it has to be a number of events a second, 0 for as many as possible", o.rate)
	}
	if o.portBase != 0 && (o.portBase < 1024 || o.portBase > 65000) {
		return fmt.Errorf("the port base (--port-base, MILLRACE_PORT_BASE) is %d; it has to be between 1024 and 65000", o.portBase)
	}
	for _, v := range os.Environ() {
		name, value, _ := strings.Cut(v, "=")
		part, ok := strings.CutPrefix(name, "MILLRACE_PORT_")
		if part = strings.ToLower(part); !ok || part == "base" || value == "" {
			continue
		}
		if _, given := o.ports[part]; given {
			continue
		}
		if err := o.ports.Set(part + "=" + value); err != nil {
			return fmt.Errorf("%s is %q; it has to be a port number", name, value)
		}
	}
	if o.database = os.Getenv("DATABASE_URL"); o.database != "" {
		if _, err := pgconn.ParseConfig(o.database); err != nil {
			return fmt.Errorf("DATABASE_URL: %w", err) // without the password
		}
	}
	if o.redis = os.Getenv("REDIS_URL"); o.redis != "" {
		if _, err := redis.ParseURL(o.redis); err != nil {
			return fmt.Errorf("REDIS_URL: %w; it has to be like redis://:password@host:6379/0", err)
		}
	}
	if os.Getenv("KAFKA_BROKERS") != "" {
		o.kafka = new(kafka.Config)
		if err := envconfig.Process("", o.kafka); err != nil {
			return fmt.Errorf("reading the Kafka settings: %w", err)
		}
	}
	if os.Getenv("S3_ENDPOINT") != "" {
		o.s3 = new(lake.Config)
		if err := envconfig.Process("", o.s3); err != nil {
			return fmt.Errorf("S3_ENDPOINT is set, so its keys are needed: set S3_ACCESS_KEY and S3_SECRET_KEY too (%w)", err)
		}
	}
	return nil
}

// assignPorts gives every part its port. The order of names is that of the parts
// in a row from the port base.
func (o *options) assignPorts(functions []string) (map[string]int, error) {
	fixed := []string{"ingress", "kafka", "s3", "postgres", "redis", "mlflow"}
	usual := map[string]int{
		"ingress": 8080, "kafka": 9092, "s3": 9000,
		// Not their own: where they are installed, the system's usually run there.
		"postgres": 15432, "redis": 16379, "mlflow": 15000,
		// A function keeps its port when others are added. Functions that are not named
		// here come behind, from 8100 on.
		"deadletter": 8081, "etl-step": 8082, "featurize": 8083, "ingest": 8084, "lake": 8085, "store": 8086,
		"validate": 8087, "predict": 8088, "train-trigger": 8089, "detect": 8090, "drift": 8091, "alert": 8092, "console": 8093, "predict-power": 8094,
	}
	next := 8100
	names := slices.Concat(fixed, functions)
	ports := make(map[string]int, len(names))
	for i, name := range names {
		switch {
		case o.portBase != 0:
			ports[name] = o.portBase + i
		case usual[name] != 0:
			ports[name] = usual[name]
		default:
			ports[name] = next
			next++
		}
	}
	for name, port := range o.ports {
		// Variable names have no hyphens.
		i := slices.IndexFunc(names, func(n string) bool { return n == name || strings.ReplaceAll(n, "-", "_") == name })
		if i < 0 {
			return nil, fmt.Errorf("a port was given for %q, which is not a part; parts are %s", name, strings.Join(names, ", "))
		}
		ports[names[i]] = port
	}
	owner := map[int]string{}
	for _, name := range names {
		if other, taken := owner[ports[name]]; taken {
			return nil, fmt.Errorf("%s and %s were both given port %d; move one with --port %s=<port>", other, name, ports[name], name)
		}
		owner[ports[name]] = name
	}
	return ports, nil
}

func truth(text string) bool {
	switch strings.ToLower(text) {
	case "", "0", "false", "no", "off":
		return false
	}
	return true
}

func envInt(name string, fallback int64) (int64, error) {
	text := os.Getenv(name)
	if text == "" {
		return fallback, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is %q; it has to be a whole number", name, text)
	}
	return n, nil
}
