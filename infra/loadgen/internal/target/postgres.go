package target

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Table is the table that Postgres writes.
const Table = "public.events"

// PostgresConfig says where rows are written.
type PostgresConfig struct {
	URL string
	// First is the number of the first message.
	First  uint64
	Logger *slog.Logger
}

// Postgres makes the changes that messages of the format row say, in order, several
// in one transaction when they come faster than the database takes them. A change
// that is made twice, as after a crash, is the same as made once. A database that is
// away is waited for.
type Postgres struct {
	*ledger
	first  uint64
	config *pgx.ConnConfig
	queue  chan Message
	live   context.Context // of the changes; cancelled to give them up
	giveUp context.CancelFunc
	done   chan struct{}
	log    *slog.Logger
	// trouble is the latest attempt's error.
	trouble atomic.Pointer[error]
}

// perTransaction bounds the changes that are committed together.
const perTransaction = 500

// NewPostgres waits for the database until ctx is done, and makes the table if it is
// missing. Deletes have to tell whose row it was, so the whole row goes into the
// database's log (REPLICA IDENTITY FULL).
func NewPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	config, err := pgx.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("reading the database's address: %w", err)
	}
	config.RuntimeParams["application_name"] = "loadgen"
	p := &Postgres{
		ledger: newLedger(cfg.First, underWay), first: cfg.First, config: config,
		queue: make(chan Message, underWay), done: make(chan struct{}), log: cfg.Logger,
	}
	for told := false; ; told = true {
		err := p.makeTable(ctx)
		if err == nil {
			break
		}
		if refused(err) {
			return nil, err
		}
		if !told {
			p.log.Info("waiting for the database", "error", err)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
	p.live, p.giveUp = context.WithCancel(context.Background())
	go p.work()
	return p, nil
}

func (p *Postgres) makeTable(ctx context.Context) error {
	conn, err := pgx.ConnectConfig(ctx, p.config)
	if err != nil {
		return fmt.Errorf("connecting to the database: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	const sql = `
		SELECT pg_advisory_xact_lock(hashtext('loadgen ` + Table + `'));
		DO $$ BEGIN
		IF to_regclass('` + Table + `') IS NULL THEN
			CREATE TABLE ` + Table + ` (
				event_time timestamptz, event_type varchar(50), product_id bigint, category_id bigint, category_code varchar(255),
				brand varchar(255), price double precision, user_id bigint, user_session varchar(255),
				PRIMARY KEY (user_session, event_time)
			);
			ALTER TABLE ` + Table + ` REPLICA IDENTITY FULL;
		END IF;
		END $$`
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("making table %s: %w", Table, err)
	}
	return nil
}

// Send puts a message into the queue.
func (p *Postgres) Send(ctx context.Context, m Message) error {
	if err := p.open(ctx, m.Seq); err != nil {
		return err
	}
	p.queue <- m // has room for as many as the ledger lets through
	return nil
}

// Close waits for the changes that are queued.
func (p *Postgres) Close(ctx context.Context) error {
	close(p.queue)
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	p.giveUp()
	<-p.done
	if o := p.Outcome(); o.Unsettled > 0 {
		return fmt.Errorf("%d changes were not written to %s: %w", o.Unsettled, Table, p.Check(ctx))
	}
	return nil
}

// Check tells what went wrong last.
func (p *Postgres) Check(context.Context) error {
	if err := p.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// Outcome counts changes.
func (p *Postgres) Outcome() Outcome { return p.outcome(p.first) }

// work makes changes until the queue is closed and empty.
func (p *Postgres) work() {
	defer close(p.done)
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			_ = conn.Close(context.Background())
		}
	}()
	for {
		batch := p.take()
		if len(batch) == 0 {
			return
		}
		for pause := firstPause; ; pause = min(2*pause, longPause) {
			err := p.live.Err()
			if err == nil && (conn == nil || conn.IsClosed()) {
				conn, err = pgx.ConnectConfig(p.live, p.config)
			}
			if err == nil {
				err = p.write(conn, batch)
			}
			if err == nil {
				p.trouble.Store(nil)
				break
			}
			p.trouble.Store(&err)
			select {
			case <-time.After(pause):
			case <-p.live.Done():
				return
			}
		}
	}
}

// take waits for a message and returns it with those that wait behind it.
func (p *Postgres) take() []Message {
	m, ok := <-p.queue
	if !ok {
		return nil
	}
	batch := []Message{m}
	for len(batch) < perTransaction {
		select {
		case m, ok := <-p.queue:
			if !ok {
				return batch
			}
			batch = append(batch, m)
		default:
			return batch
		}
	}
	return batch
}

// write settles a batch. Where the database refuses a change for what it says, the
// changes are made one by one, and that one is refused.
func (p *Postgres) write(conn *pgx.Conn, batch []Message) error {
	err := p.transaction(conn, batch)
	switch {
	case err == nil:
		for _, m := range batch {
			p.delivered(m.Seq)
		}
		return nil
	case !refused(err):
		return err
	case len(batch) == 1:
		p.refuse(batch[0].Seq, err.Error())
		return nil
	}
	for i := range batch {
		if err := p.write(conn, batch[i:i+1]); err != nil {
			return err
		}
	}
	return nil
}

// errBadRow is of a message that is no change of a row.
var errBadRow = errors.New("not a change of a row")

// refused tells an error that another try would meet again from one of the
// connection or of the server's state.
func refused(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		// Data, integrity, and what the user may not do or has misspelt.
		return strings.HasPrefix(answer.Code, "22") || strings.HasPrefix(answer.Code, "23") || strings.HasPrefix(answer.Code, "42")
	}
	return errors.Is(err, errBadRow)
}

// row is a row of the table. What is absent or null becomes NULL.
type row struct {
	EventTime    *time.Time `json:"event_time"`
	EventType    *string    `json:"event_type"`
	ProductID    *int64     `json:"product_id"`
	CategoryID   *int64     `json:"category_id"`
	CategoryCode *string    `json:"category_code"`
	Brand        *string    `json:"brand"`
	Price        *float64   `json:"price"`
	UserID       *int64     `json:"user_id"`
	UserSession  *string    `json:"user_session"`
}

func (p *Postgres) transaction(conn *pgx.Conn, batch []Message) error {
	statements := &pgx.Batch{}
	for _, m := range batch {
		var change struct {
			Op            string
			Before, After *row
		}
		if err := json.Unmarshal(m.Value, &change); err != nil {
			return fmt.Errorf("%w: %w", errBadRow, err)
		}
		before, after := change.Before, change.After
		switch {
		case change.Op == "c" && after != nil:
			statements.Queue("INSERT INTO "+Table+" (event_time, event_type, product_id, category_id, category_code, brand, price, user_id, user_session)"+
				" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING",
				after.EventTime, after.EventType, after.ProductID, after.CategoryID, after.CategoryCode, after.Brand, after.Price, after.UserID, after.UserSession)
		case change.Op == "u" && after != nil:
			statements.Queue("UPDATE "+Table+" SET event_type = $3, product_id = $4, category_id = $5, category_code = $6, brand = $7, price = $8, user_id = $9"+
				" WHERE user_session = $1 AND event_time = $2",
				after.UserSession, after.EventTime, after.EventType, after.ProductID, after.CategoryID, after.CategoryCode, after.Brand, after.Price, after.UserID)
		case change.Op == "d" && before != nil:
			statements.Queue("DELETE FROM "+Table+" WHERE user_session = $1 AND event_time = $2", before.UserSession, before.EventTime)
		default:
			return fmt.Errorf("%w: op is %q", errBadRow, change.Op)
		}
	}
	// A batch is one transaction.
	return conn.SendBatch(p.live, statements).Close()
}
