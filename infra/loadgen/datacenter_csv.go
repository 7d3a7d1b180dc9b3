package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/millrace-dev/millrace/infra/loadgen/datacenter"
)

// csvColumns are those of a CSV file of readings: of servers and of services, of which
// each leaves the others' empty.
var csvColumns = slices.Concat([]string{"type", "timestamp", "server_id", "rack_id", "datacenter_zone", "service_name", "endpoint"},
	datacenter.ServerMetrics[:], datacenter.ServiceMetrics[:])

// csvHeader is the first line.
func csvHeader() string { return strings.Join(csvColumns, ",") + "\n" }

// appendCSV writes a message as a line of CSV, without its end. No text in it needs
// quotes.
func appendCSV(b, message []byte) ([]byte, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(message, &members); err != nil {
		return b, fmt.Errorf("writing a reading as CSV: %w", err)
	}
	for i, name := range csvColumns {
		if i > 0 {
			b = append(b, ',')
		}
		value := members[name]
		if n := len(value); n > 1 && value[0] == '"' {
			value = value[1 : n-1]
		}
		b = append(b, value...)
	}
	return b, nil
}
