package datacenter

import (
	"math"
	"strconv"
	"time"
)

// timeLayout is how the messages write times, always in UTC.
const timeLayout = "2006-01-02T15:04:05.000000+00:00"

// AppendJSON writes a reading as the message server_metric.
func (r *ServerReading) AppendJSON(b []byte) []byte {
	b = r.Time.UTC().AppendFormat(append(b, `{"type":"server_metric","timestamp":"`...), timeLayout)
	b = append(append(b, `","server_id":"`...), r.Server...)
	b = append(append(b, `","rack_id":"`...), r.Rack...)
	b = append(append(append(b, `","datacenter_zone":"`...), r.Zone...), '"')
	for i, x := range r.Values {
		b = appendValue(b, ServerMetrics[i], x, serverDecimals[i])
	}
	return append(b, '}')
}

// AppendJSON writes a reading as the message application_metric.
func (r *ServiceReading) AppendJSON(b []byte) []byte {
	b = r.Time.UTC().AppendFormat(append(b, `{"type":"application_metric","timestamp":"`...), timeLayout)
	b = append(append(b, `","service_name":"`...), r.Service...)
	b = append(append(append(b, `","server_id":"`...), r.Server...), '"')
	for i, x := range r.Values {
		b = appendValue(b, ServiceMetrics[i], x, serviceDecimals[i])
	}
	return append(append(append(b, `,"endpoint":"`...), r.Endpoint...), '"', '}')
}

func appendValue(b []byte, name string, x float64, decimals uint8) []byte {
	b = append(append(append(b, ',', '"'), name...), '"', ':')
	n := int64(math.Round(x * powers[decimals]))
	for decimals > 0 && n%10 == 0 {
		n /= 10
		decimals--
	}
	if n < 0 {
		b, n = append(b, '-'), -n
	}
	scale := int64(powers[decimals])
	b = strconv.AppendInt(b, n/scale, 10)
	if decimals > 0 {
		b = append(b, '.')
		for rest := n % scale; scale > 1; {
			scale /= 10
			b = append(b, byte('0'+rest/scale))
			rest %= scale
		}
	}
	return b
}

// Kind is the entity_type of the ground truth, and of what is detected.
func (e *Episode) Kind() string {
	if e.OfService {
		return "application"
	}
	return "server"
}

// AppendJSON writes the ground truth of an anomaly: whose, of which type, which of the
// metrics it changes, the one that it changes most first, and that readings from
// start on and before end are part of it. interval is that of the readings.
func (e *Episode) AppendJSON(b []byte, interval time.Duration) []byte {
	b = append(append(b, `{"type":"anomaly","entity_type":"`...), e.Kind()...)
	b = append(append(b, `","entity_id":"`...), e.Entity...)
	b = append(append(b, `","anomaly_type":"`...), e.Type.String()...)
	b = append(b, `","metrics":[`...)
	for i, name := range typeMetrics[e.Type] {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, '"'), name...), '"')
	}
	b = e.Start.UTC().AppendFormat(append(b, `],"start":"`...), timeLayout)
	b = e.End.UTC().AppendFormat(append(b, `","end":"`...), timeLayout)
	b = strconv.AppendFloat(append(b, `","interval_seconds":`...), interval.Seconds(), 'f', -1, 64)
	return append(b, '}')
}

// AppendJSON writes the ground truth of a drift.
func (d *Drift) AppendJSON(b []byte) []byte {
	b = append(append(b, `{"type":"drift","kind":"`...), d.Kind.String()...)
	b = d.At.UTC().AppendFormat(append(b, `","start":"`...), timeLayout)
	b = strconv.AppendFloat(append(b, `","over_seconds":`...), d.Over.Seconds(), 'f', -1, 64)
	b = strconv.AppendFloat(append(b, `,"size":`...), d.Size, 'f', -1, 64)
	return append(b, '}')
}
