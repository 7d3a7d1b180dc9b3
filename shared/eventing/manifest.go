package eventing

// The manifests as they are written, before defaults and references. Every field
// that the engine gives a meaning is here, and nothing else: decoding is strict, so
// that a field which would be ignored is an error instead.

type manifest[S any] struct {
	APIVersion string   `yaml:"apiVersion"`
	Kind       string   `yaml:"kind"`
	Metadata   metadata `yaml:"metadata"`
	Spec       S        `yaml:"spec"`
}

type metadata struct {
	Name        string            `yaml:"name"`
	Namespace   string            `yaml:"namespace"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

type reference struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Namespace  string `yaml:"namespace"`
	Name       string `yaml:"name"`
}

type destinationSpec struct {
	Ref *reference `yaml:"ref"`
	URI string     `yaml:"uri"`
}

type deliverySpec struct {
	DeadLetterSink *destinationSpec `yaml:"deadLetterSink"`
	Retry          *int             `yaml:"retry"`
	Timeout        string           `yaml:"timeout"`
	BackoffPolicy  string           `yaml:"backoffPolicy"`
	BackoffDelay   string           `yaml:"backoffDelay"`
	RetryAfterMax  string           `yaml:"retryAfterMax"`
	Format         string           `yaml:"format"`
}

type overridesSpec struct {
	Extensions map[string]string `yaml:"extensions"`
}

type brokerSpec struct {
	Config   *reference    `yaml:"config"`
	Delivery *deliverySpec `yaml:"delivery"`
}

type triggerSpec struct {
	Broker string `yaml:"broker"`
	Filter *struct {
		Attributes map[string]string `yaml:"attributes"`
	} `yaml:"filter"`
	Filters    []filterSpec     `yaml:"filters"`
	Subscriber *destinationSpec `yaml:"subscriber"`
	Delivery   *deliverySpec    `yaml:"delivery"`
}

type filterSpec struct {
	Exact  map[string]string `yaml:"exact"`
	Prefix map[string]string `yaml:"prefix"`
	Suffix map[string]string `yaml:"suffix"`
	All    []filterSpec      `yaml:"all"`
	Any    []filterSpec      `yaml:"any"`
	Not    *filterSpec       `yaml:"not"`
	CESQL  string            `yaml:"cesql"`
}

type kafkaSourceSpec struct {
	// Consumers is Knative's number of consumers in the cluster; one engine is one.
	Consumers *int `yaml:"consumers"`
	// BootstrapServers and Net are the cluster's way to Kafka; the engine has its own.
	BootstrapServers []string         `yaml:"bootstrapServers"`
	Net              map[string]any   `yaml:"net"`
	Topics           []string         `yaml:"topics"`
	ConsumerGroup    string           `yaml:"consumerGroup"`
	InitialOffset    string           `yaml:"initialOffset"`
	Ordering         string           `yaml:"ordering"`
	Delivery         *deliverySpec    `yaml:"delivery"`
	Sink             *destinationSpec `yaml:"sink"`
	CEOverrides      *overridesSpec   `yaml:"ceOverrides"`
}

type kafkaSinkSpec struct {
	BootstrapServers  []string       `yaml:"bootstrapServers"`
	Auth              map[string]any `yaml:"auth"`
	Topic             string         `yaml:"topic"`
	NumPartitions     *int32         `yaml:"numPartitions"`
	ReplicationFactor *int16         `yaml:"replicationFactor"`
	ContentMode       string         `yaml:"contentMode"`
}

type pingSourceSpec struct {
	Schedule    string           `yaml:"schedule"`
	Timezone    string           `yaml:"timezone"`
	ContentType string           `yaml:"contentType"`
	Data        string           `yaml:"data"`
	DataBase64  string           `yaml:"dataBase64"`
	Sink        *destinationSpec `yaml:"sink"`
	CEOverrides *overridesSpec   `yaml:"ceOverrides"`
}

type jobSinkSpec struct {
	Job map[string]any `yaml:"job"`
}

type sinkBindingSpec struct {
	Subject *struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string `yaml:"kind"`
		Namespace  string `yaml:"namespace"`
		Name       string `yaml:"name"`
		Selector   *struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		} `yaml:"selector"`
	} `yaml:"subject"`
	Sink        *destinationSpec `yaml:"sink"`
	CEOverrides *overridesSpec   `yaml:"ceOverrides"`
}
