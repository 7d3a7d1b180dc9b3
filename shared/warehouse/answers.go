package warehouse

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-dev/millrace/shared/health"
)

// answers notes of all that is asked whether PostgreSQL answered it.
type answers struct{ store *health.Store }

// note judges an error by what became of the connection: what the server refused, or what
// could not be sent, left it as it was. What the caller gave up says nothing.
func (a answers) note(ctx context.Context, conn *pgx.Conn, err error) {
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &pg):
		// Operator intervention: shutting down, starting up.
		if strings.HasPrefix(pg.Code, "57P0") {
			a.store.Failed(err)
			return
		}
		a.store.Well()
	case err == nil:
		a.store.Well()
	case errors.Is(ctx.Err(), context.Canceled):
	case conn == nil || conn.IsClosed():
		a.store.Failed(err)
	}
}

func (a answers) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return ctx
}

func (a answers) TraceConnectEnd(ctx context.Context, d pgx.TraceConnectEndData) {
	a.note(ctx, d.Conn, d.Err)
}

func (a answers) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (a answers) TraceQueryEnd(ctx context.Context, conn *pgx.Conn, d pgx.TraceQueryEndData) {
	a.note(ctx, conn, d.Err)
}

func (a answers) TraceBatchStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceBatchStartData) context.Context {
	return ctx
}

func (a answers) TraceBatchQuery(context.Context, *pgx.Conn, pgx.TraceBatchQueryData) {}

func (a answers) TraceBatchEnd(ctx context.Context, conn *pgx.Conn, d pgx.TraceBatchEndData) {
	a.note(ctx, conn, d.Err)
}

func (a answers) TraceCopyFromStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceCopyFromStartData) context.Context {
	return ctx
}

func (a answers) TraceCopyFromEnd(ctx context.Context, conn *pgx.Conn, d pgx.TraceCopyFromEndData) {
	a.note(ctx, conn, d.Err)
}
