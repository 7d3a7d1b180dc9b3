package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-dev/millrace/infra/local/internal/supervise"
	"github.com/millrace-dev/millrace/shared/eventing"
	"github.com/millrace-dev/millrace/shared/pgserver"
)

// databaseName is the name of the database and of its only user, who may everything:
// also replicate, which change data capture needs.
const databaseName = "millrace"

// database is the PostgreSQL in use. One without a url is none.
type database struct {
	url    string
	server *pgserver.Server // nil when it is not ours to run
	pool   *pgxpool.Pool    // of few connections, for asking; nil without a url
}

// openDatabase finds or makes the database. Where this machine can run none, it
// leaves out what needs one; the rest of the platform does not. Its errors are for
// the user to read.
func (w *parts) openDatabase(ctx context.Context) error {
	if w.opts.database != "" {
		w.database.url = w.opts.database
	} else {
		err := w.openOwnDatabase(ctx)
		if errors.Is(err, pgserver.ErrUnavailable) {
			w.leaveOut("DATABASE_URL", err.Error()+". Or name one that runs elsewhere with DATABASE_URL.")
			return nil
		}
		if err != nil {
			return err
		}
	}
	config, err := pgxpool.ParseConfig(w.database.url)
	if err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	// Two count, one asks whether it answers.
	config.MaxConns = 3
	config.ConnConfig.ConnectTimeout = 3 * time.Second
	config.ConnConfig.RuntimeParams["application_name"] = "millrace"
	if w.database.pool, err = pgxpool.NewWithConfig(context.WithoutCancel(ctx), config); err != nil {
		return fmt.Errorf("DATABASE_URL: %w", err)
	}
	return nil
}

// openOwnDatabase makes the server's data folder when there is none, and ends a
// server that outlived its runner.
func (w *parts) openOwnDatabase(ctx context.Context) error {
	server, err := pgserver.Open(w.state.join("data", "postgres"))
	if err != nil {
		return err
	}
	if server.Credential() != nil {
		// Only to enter: what is in these folders has its own permissions.
		for _, dir := range []string{w.state.path, w.state.join("data")} {
			if err := letEnter(dir); err != nil {
				return err
			}
		}
	}
	err = server.Init(ctx, pgserver.Setup{User: databaseName, Password: w.secrets.PostgresPassword, Databases: []string{databaseName}})
	if err != nil {
		return err
	}
	if _, err := server.EndLeftovers(ctx); err != nil {
		return err
	}
	w.database.server = server
	w.database.url = (&url.URL{
		Scheme: "postgres", User: url.UserPassword(databaseName, w.secrets.PostgresPassword),
		Host: local(w.ports["postgres"]), Path: "/" + databaseName,
	}).String()
	return nil
}

func letEnter(dir string) error {
	fi, err := os.Stat(dir)
	if err == nil {
		err = os.Chmod(dir, fi.Mode().Perm()|0o001)
	}
	if err != nil {
		return fmt.Errorf("letting PostgreSQL enter its folder: %w", err)
	}
	return nil
}

// postgresSpec is the PostgreSQL server. A commit is on the disk when it is
// acknowledged, since events are acknowledged after it.
func (w *parts) postgresSpec() (supervise.Spec, error) {
	path, args := w.database.server.Command(map[string]string{
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(w.ports["postgres"]),
		// The path of a socket may have 107 bytes; folders of projects are longer.
		"unix_socket_directories": "",
		// Change data capture reads it, and must not keep it for ever when it is away.
		"wal_level": "logical", "max_wal_senders": "4", "max_replication_slots": "4", "max_slot_wal_keep_size": "4GB",
		// Transactions here load whole objects: fewer checkpoints write fewer full pages.
		"max_wal_size": "1GB", "checkpoint_timeout": "15min", "wal_compression": "on",
		"shared_buffers": "128MB", "maintenance_work_mem": "128MB", "max_connections": "60",
		// Compiling costs more than it saves in statements of seconds.
		"jit":      "off",
		"timezone": "UTC", "log_timezone": "UTC", "log_min_messages": "warning", "log_checkpoints": "off",
	})
	return supervise.Spec{
		Name: "postgres", Path: path, Args: args,
		// PGDATA and the like of the user are about another server.
		Env:        []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"},
		Credential: w.database.server.Credential(),
		Prepare: func(ctx context.Context) error {
			_, err := w.database.server.EndLeftovers(ctx)
			return err
		},
		Ready:       w.database.pool.Ping,
		StopSignal:  pgserver.Stop,
		KillSignal:  pgserver.Kill,
		StopTimeout: 30 * time.Second,
	}, nil
}

// address is the database's address without the password.
func (d *database) address() string {
	u, err := url.Parse(d.url)
	if err != nil {
		return "as DATABASE_URL says" // the other form of a connection string
	}
	return u.Redacted()
}

// checkDatabase waits a little for a PostgreSQL that the user named.
func (w *parts) checkDatabase(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := w.database.pool.Ping(ctx); err != nil {
		return fmt.Errorf("no PostgreSQL answers as DATABASE_URL says: %w. Start it, correct the variable, or unset it to run one here", err)
	}
	return nil
}

// registryURL is where the model registry is, or will be: what reads models does
// without until it answers.
func (w *parts) registryURL() string {
	return or(os.Getenv("MLFLOW_TRACKING_URI"), "http://"+local(w.ports["mlflow"]))
}

// leftOut is what does not run on this machine, and why.
type leftOut struct {
	Variable string   `json:"variable"` // what they need
	Names    []string `json:"names"`
	Reason   string   `json:"reason"`
}

// leaveOut takes the functions that need a variable, and the Triggers that deliver to
// them, out of the platform: events for a function that is not there would go to the
// dead letters. A Trigger that has run before goes on where it was once it is back.
func (w *parts) leaveOut(name, reason string) {
	out := leftOut{Variable: name, Reason: reason}
	p := w.platform
	p.services = slices.DeleteFunc(p.services, func(s service) bool {
		needs := slices.ContainsFunc(s.env, func(v variable) bool { return v.name == name && !v.optional })
		if needs {
			out.Names = append(out.Names, s.name)
			p.graph.Triggers = slices.DeleteFunc(p.graph.Triggers, func(t *eventing.Trigger) bool {
				return t.Subscriber.Kind == eventing.ToService && t.Subscriber.Namespace == s.namespace && t.Subscriber.Name == s.name
			})
		}
		return needs
	})
	if len(out.Names) > 0 {
		w.leftOut = append(w.leftOut, out)
	}
}

func (o leftOut) String() string { return strings.Join(o.Names, ", ") + " not started. " + o.Reason }
