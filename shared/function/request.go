package function

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/events"
)

// mode is the content mode of a request.
type mode int

const (
	binary mode = iota
	structured
	batched
)

// modeOf tells the content mode by the headers, or that this is no CloudEvent.
func modeOf(h http.Header) (mode, error) {
	contentType := h.Get("Content-Type")
	if len(contentType) >= len("application/cloudevents") &&
		strings.EqualFold(contentType[:len("application/cloudevents")], "application/cloudevents") {
		media, params, err := mime.ParseMediaType(contentType)
		if err != nil {
			return 0, unsupported("Content-Type %q is malformed", contentType)
		}
		if charset := params["charset"]; charset != "" && !strings.EqualFold(charset, "utf-8") {
			return 0, unsupported("charset %q is not supported, JSON is UTF-8", charset)
		}
		switch media {
		case events.ContentTypeEvent:
			return structured, nil
		case events.ContentTypeBatch:
			return batched, nil
		}
		return 0, unsupported("event format %q is not supported, %s and %s are", media, events.ContentTypeEvent, events.ContentTypeBatch)
	}
	for _, name := range [...]string{"Ce-Specversion", "Ce-Id", "Ce-Source", "Ce-Type"} {
		if _, ok := h[name]; ok {
			return binary, nil
		}
	}
	return 0, unsupported("not a CloudEvent: no ce- headers, and Content-Type is %q", contentType)
}

func unsupported(format string, args ...any) error {
	return &statusError{status: http.StatusUnsupportedMediaType, err: fmt.Errorf(format, args...)}
}

func tooLarge(format string, args ...any) error {
	return &statusError{status: http.StatusRequestEntityTooLarge, err: fmt.Errorf(format, args...)}
}

// firstRead is how much is allocated for a body before any of it has come, so
// that a promised length alone costs little memory.
const firstRead = 256 << 10

// readBody reads a body of at most limit bytes into memory of its own. name says
// where the limit is set.
func readBody(r *http.Request, limit int, name string) ([]byte, error) {
	if r.ContentLength == 0 {
		return nil, nil
	}
	if r.ContentLength > int64(limit) {
		return nil, tooLarge("body of %d bytes is too large (%s is %d)", r.ContentLength, name, limit)
	}
	size := 4096
	if r.ContentLength > 0 {
		size = int(min(r.ContentLength, firstRead))
	}
	body := make([]byte, 0, size)
	for {
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if len(body) > limit {
			return nil, tooLarge("body is too large (%s is %d)", name, limit)
		}
		if err == io.EOF {
			return body, nil
		}
		if err != nil {
			return nil, readError(err)
		}
		if int64(len(body)) == r.ContentLength {
			return body, nil
		}
		if len(body) == cap(body) {
			// Double, but not past what is to come or allowed; the one byte more
			// tells a body that is too large.
			size := min(2*cap(body), limit+1)
			if r.ContentLength > 0 {
				size = min(size, int(r.ContentLength))
			}
			grown := make([]byte, len(body), size)
			copy(grown, body)
			body = grown
		}
	}
}

// readError tells a slow sender from a broken request.
func readError(err error) error {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return &statusError{status: http.StatusRequestTimeout, err: errors.New("the request took too long to arrive"), retryAfter: time.Second}
	}
	return Invalid("reading the body: %w", err)
}
