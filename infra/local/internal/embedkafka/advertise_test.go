package embedkafka

import (
	"net"
	"strconv"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Clients in other pods find the broker by the name that it advertises, not by the
// address that it listens on.
func TestRun_advertise(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	dir := t.TempDir()
	done := make(chan error, 1)
	t.Cleanup(func() { <-done })
	go func() {
		done <- Run(t.Context(), Config{
			Port: port, Host: "0.0.0.0", Advertise: "kafka.example:9092",
			DataDir: dir, PartitionBytes: MinPartitionBytes,
		})
	}()
	cl, err := kgo.NewClient(kgo.SeedBrokers(net.JoinHostPort("127.0.0.1", strconv.Itoa(port))))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var brokers kadm.BrokerDetails
	eventually(t, "the broker answers", func() bool {
		brokers, err = kadm.NewClient(cl).ListBrokers(t.Context())
		return err == nil && len(brokers) == 1
	})
	if got := net.JoinHostPort(brokers[0].Host, strconv.Itoa(int(brokers[0].Port))); got != "kafka.example:9092" {
		t.Errorf("advertised %s", got)
	}
}
