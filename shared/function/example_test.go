package function_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/cloudevents/sdk-go/v2/event"

	"github.com/millrace-dev/millrace/shared/events"
	"github.com/millrace-dev/millrace/shared/function"
)

// greet is a function of one event. It replies with a greeting, or says that the
// event is bad and always will be.
func greet(_ context.Context, e event.Event) (*event.Event, error) {
	var person struct{ Name string }
	if err := e.DataAs(&person); err != nil {
		return nil, function.Invalid("reading the person: %w", err)
	}
	reply := events.NewReply(&e, "greet", "com.example.greeted")
	err := reply.SetData("text/plain", []byte("Hello, "+person.Name+"!"))
	return &reply, err
}

func Example() {
	server, err := function.New(function.Config{Name: "greet"}, function.Each(greet))
	if err != nil {
		fmt.Println(err)
		return
	}
	s := httptest.NewServer(server) // a main calls function.Run instead
	defer s.Close()

	for _, body := range []string{`{"name": "Ada"}`, `"Ada"`} {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.URL, strings.NewReader(body))
		if err != nil {
			fmt.Println(err)
			return
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Ce-Specversion", "1.0")
		request.Header.Set("Ce-Id", "1")
		request.Header.Set("Ce-Source", "/people")
		request.Header.Set("Ce-Type", "com.example.person")
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			fmt.Println(err)
			return
		}
		answer, err := io.ReadAll(response.Body)
		if err := errors.Join(err, response.Body.Close()); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(response.StatusCode, response.Header.Get("Ce-Type"), string(answer))
	}
	// Output:
	// 200 com.example.greeted Hello, Ada!
	// 400  reading the person: [json] found bytes ""Ada"", but failed to unmarshal: json: cannot unmarshal string into Go value of type struct { Name string }
}

// A batch function sees all events of a call, so that it can make one round trip
// for all of them.
func ExampleHandlerFunc() {
	count := function.HandlerFunc(func(_ context.Context, batch []event.Event) []function.Result {
		fmt.Println("storing", len(batch), "rows in one statement")
		return make([]function.Result, len(batch)) // no replies, no errors
	})
	server, err := function.New(function.Config{Name: "count"}, count)
	if err != nil {
		fmt.Println(err)
		return
	}
	request := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(`[
		{"specversion": "1.0", "id": "1", "source": "/s", "type": "t"},
		{"specversion": "1.0", "id": "2", "source": "/s", "type": "t"}
	]`))
	request.Header.Set("Content-Type", events.ContentTypeBatch)
	response := httptest.NewRecorder()
	server.ServeHTTP(response, request)
	fmt.Println(response.Code)
	// Output:
	// storing 2 rows in one statement
	// 202
}
