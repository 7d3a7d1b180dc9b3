package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Config is the way to the Kafka cluster. Its tags are the names that
// envconfig.Process("", &c) reads.
type Config struct {
	// Brokers are the addresses, host:port, that the client starts from.
	Brokers []string `envconfig:"KAFKA_BROKERS"`
	// TLS encrypts the connections; a certificate is verified against the system's
	// authorities, or those in CAFile.
	TLS bool `envconfig:"KAFKA_TLS"`
	// CAFile is a PEM file of the authorities to trust instead of the system's.
	CAFile string `envconfig:"KAFKA_CA_FILE"`
	// SASLMechanism is PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty is none.
	SASLMechanism string `envconfig:"KAFKA_SASL_MECHANISM"`
	Username      string `envconfig:"KAFKA_USERNAME"`
	Password      string `envconfig:"KAFKA_PASSWORD"`
	// ClientID names the client in the broker's logs and quotas.
	ClientID string `envconfig:"KAFKA_CLIENT_ID" default:"millrace"`
}

// Options are the client options for the configuration. The error says which
// variable is wrong.
func (c Config) Options() ([]kgo.Opt, error) {
	if len(c.Brokers) == 0 {
		return nil, errors.New("KAFKA_BROKERS is empty, it has to name at least one host:port")
	}
	for _, b := range c.Brokers {
		if strings.TrimSpace(b) == "" || strings.Contains(b, "/") {
			return nil, fmt.Errorf("KAFKA_BROKERS: %q is not a host:port", b)
		}
	}
	opts := []kgo.Opt{
		kgo.SeedBrokers(c.Brokers...),
		// A broker that dies just after it has accepted a connection looks like one
		// that wants TLS, and the client would give up what it was about to produce.
		kgo.AlwaysRetryEOF(),
	}
	if c.ClientID != "" {
		opts = append(opts, kgo.ClientID(c.ClientID))
	}
	if c.TLS || c.CAFile != "" {
		t := &tls.Config{MinVersion: tls.VersionTLS12}
		if c.CAFile != "" {
			pem, err := os.ReadFile(c.CAFile)
			if err != nil {
				return nil, fmt.Errorf("reading KAFKA_CA_FILE: %w", err)
			}
			t.RootCAs = x509.NewCertPool()
			if !t.RootCAs.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("KAFKA_CA_FILE: %s holds no certificate", c.CAFile)
			}
		}
		opts = append(opts, kgo.DialTLSConfig(t))
	}
	mechanism, err := c.mechanism()
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

func (c Config) mechanism() (sasl.Mechanism, error) {
	if c.SASLMechanism != "" && c.Username == "" {
		return nil, errors.New("KAFKA_USERNAME is empty although KAFKA_SASL_MECHANISM is set")
	}
	switch strings.ToUpper(c.SASLMechanism) {
	case "":
		if c.Username != "" {
			return nil, errors.New("KAFKA_SASL_MECHANISM is empty although KAFKA_USERNAME is set")
		}
		return nil, nil
	case "PLAIN":
		return plain.Auth{User: c.Username, Pass: c.Password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: c.Username, Pass: c.Password}.AsSha256Mechanism(), nil
	case "SCRAM-SHA-512":
		return scram.Auth{User: c.Username, Pass: c.Password}.AsSha512Mechanism(), nil
	default:
		return nil, fmt.Errorf("KAFKA_SASL_MECHANISM: %q is not PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.SASLMechanism)
	}
}
