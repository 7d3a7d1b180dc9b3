package warehouse

import (
	"net"
	"testing"

	"github.com/millrace-dev/millrace/shared/health"
	"github.com/millrace-dev/millrace/shared/testkit/pgtest"
)

// What the server refuses was answered; what nobody answers was not.
func TestWhetherPostgreSQLAnswers(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	_ = l.Close()
	ask := func(url, sql string) health.State {
		db, err := Config{URL: url, MaxConns: 1}.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		_, _ = db.Exec(t.Context(), sql)
		state, _ := health.Of(health.Postgres).State()
		return state
	}
	there := pgtest.URL(t)
	if s := ask(there, "SELECT 1"); !s.Up {
		t.Errorf("after an answer: %+v", s)
	}
	if s := ask("postgres://x@"+nobody+"/x", "SELECT 1"); s.Up || s.Error == "" {
		t.Errorf("with nobody there: %+v", s)
	}
	if s := ask(there, "SELECT no_such_column"); !s.Up || s.AwaySeconds <= 0 {
		t.Errorf("after a refusal: %+v", s)
	}
}
