package function

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// statusError is an error that says what the sender should do.
type statusError struct {
	status     int
	retryAfter time.Duration
	err        error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// Invalid says that the event is bad and will be bad for ever: 400. The sender
// does not retry, the event goes to the dead-letter sink with this text.
func Invalid(format string, args ...any) error {
	return &statusError{status: http.StatusBadRequest, err: fmt.Errorf(format, args...)}
}

// Unavailable says that something the function depends on is down: 503. The sender
// retries, not before retryAfter (rounded up to whole seconds, at least one).
func Unavailable(err error, retryAfter time.Duration) error {
	return &statusError{status: http.StatusServiceUnavailable, retryAfter: retryAfter, err: err}
}

// Overloaded says that the function, or what it depends on, has too much to do:
// 429. The sender retries, not before retryAfter (rounded up to whole seconds, at
// least one).
func Overloaded(retryAfter time.Duration, format string, args ...any) error {
	return &statusError{status: http.StatusTooManyRequests, retryAfter: retryAfter, err: fmt.Errorf(format, args...)}
}

// Status is the HTTP status that an error of a Result is answered with: what
// Invalid, Unavailable and Overloaded say, 503 for a deadline or a cancellation
// that the handler ran into, 500 for every other error, 200 for nil.
func Status(err error) int {
	status, _ := classify(err)
	return status
}

func classify(err error) (status int, retryAfter time.Duration) {
	if err == nil {
		return http.StatusOK, 0
	}
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status, e.retryAfter
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return http.StatusServiceUnavailable, time.Second
	}
	return http.StatusInternalServerError, 0
}

// permanent tells the failures of an event that no retry can mend.
func permanent(status int) bool {
	return status == http.StatusBadRequest || status == http.StatusRequestEntityTooLarge ||
		status == http.StatusUnsupportedMediaType
}

// maxErrorText bounds the text of an error in a response or a dead letter, as
// Knative bounds knativeerrordata.
const maxErrorText = 1024

// errorLine is the error's text on one line.
func errorLine(err error) string {
	text := strings.Join(strings.Fields(strings.ToValidUTF8(err.Error(), "\ufffd")), " ")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText-3], "") + "..."
	}
	return text
}

// writeError answers a request with an error: the one place where errors become
// status codes.
func writeError(w http.ResponseWriter, err error) {
	status, retryAfter := classify(err)
	h := w.Header()
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		seconds := max(1, int64((retryAfter+time.Second-1)/time.Second))
		h.Set("Retry-After", strconv.FormatInt(seconds, 10))
	}
	text := errorLine(err) + "\n"
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a client that is gone needs no answer
}
