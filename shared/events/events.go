// Package events names the CloudEvents that Millrace exchanges and encodes them.
//
// It holds the event types and extension attributes of the event graph, the rule
// by which a reply gets its id, and one lean representation of an event, Message,
// with codecs for the JSON event format, the JSON batch format and the HTTP
// binary mode. The Kafka binding of the same Message is in package kafka.
//
// It has no I/O and knows nothing of what an event's data means.
package events

// FunctionSource begins the source of every event that a function makes; the function's
// name follows.
const FunctionSource = "/millrace/"

// Event types. The last part is the version of the data's schema.
const (
	// KafkaRecord is a raw Kafka record as a KafkaSource sends it; the topic is
	// the fragment of the source ("...kafkasources/name#topic").
	KafkaRecord = "dev.knative.kafka.event"
	// Tick is what a PingSource sends; the source's last path element names it.
	Tick = "dev.knative.sources.ping"

	BehaviorRaw       = "dev.millrace.behavior.raw.v1"
	BehaviorValidated = "dev.millrace.behavior.validated.v1"
	BehaviorInvalid   = "dev.millrace.behavior.invalid.v1"
	MetricRaw         = "dev.millrace.metric.raw.v1"
	MetricValidated   = "dev.millrace.metric.validated.v1"
	MetricInvalid     = "dev.millrace.metric.invalid.v1"

	// FeaturesReady carries an event's features as they were served.
	FeaturesReady = "dev.millrace.features.ready.v1"
	// PredictionMade carries what a model version predicts for an event's features.
	PredictionMade = "dev.millrace.prediction.made.v1"

	// InferenceRequest and InferenceResponse carry the body of a request to predict and
	// of its answer, as KServe's logger sends them. Both have the request's id.
	InferenceRequest  = "org.kubeflow.serving.inference.request"
	InferenceResponse = "org.kubeflow.serving.inference.response"

	// AnomalyDetected carries one anomaly of an entity's metric, AnomalyResolved its end.
	AnomalyDetected = "dev.millrace.anomaly.detected.v1"
	AnomalyResolved = "dev.millrace.anomaly.resolved.v1"

	// DriftMeasured carries what a measuring found, DriftDetected that it holds.
	DriftMeasured = "dev.millrace.drift.measured.v1"
	DriftDetected = "dev.millrace.drift.detected.v1"

	// TrainingRequested asks the trainer for a run; the subject is the model's name.
	// The trainer answers with one of the other two.
	TrainingRequested = "dev.millrace.training.requested.v1"
	TrainingCompleted = "dev.millrace.training.completed.v1"
	TrainingFailed    = "dev.millrace.training.failed.v1"

	// AlertRaised says that somebody was to be told of something.
	AlertRaised = "dev.millrace.alert.raised.v1"

	// ModelPromoted and ModelRolledBack say that another version of a model is to be
	// served, ModelKept that a new one is not, and why; the subject is the model's name.
	ModelPromoted   = "dev.millrace.model.promoted.v1"
	ModelKept       = "dev.millrace.model.kept.v1"
	ModelRolledBack = "dev.millrace.model.rolledback.v1"

	// ObjectCreated begins the types of events of objects that were written, by the
	// CloudEvents adapter for S3: by a plain PUT, a copy, or in parts. ObjectRemoved is
	// an object's end.
	ObjectCreated  = "com.amazonaws.s3.ObjectCreated:"
	ObjectPut      = "com.amazonaws.s3.ObjectCreated:Put"
	ObjectCopied   = "com.amazonaws.s3.ObjectCreated:Copy"
	ObjectUploaded = "com.amazonaws.s3.ObjectCreated:CompleteMultipartUpload"
	ObjectRemoved  = "com.amazonaws.s3.ObjectRemoved:Delete"

	// The warehouse's steps, each saying that it is done with an object; ETLFailed
	// says that a batch goes no further.
	BronzeLoaded      = "dev.millrace.etl.bronze.loaded.v1"
	SilverTransformed = "dev.millrace.etl.silver.transformed.v1"
	GoldLoaded        = "dev.millrace.etl.gold.loaded.v1"
	GoldChecked       = "dev.millrace.etl.gold.checked.v1"
	ETLFailed         = "dev.millrace.etl.failed.v1"
)

// Extension attributes.
const (
	// PartitionKey decides the Kafka partition, and so the order: events of one
	// session or server carry the same key.
	PartitionKey = "partitionkey"
	// EventType is the kind of the shop's event that features are of: cart, view and so
	// on. Not every kind is predicted for.
	EventType = "eventtype"
	// Contract names the stream contract a verdict was given by.
	Contract = "contract"
	// Op is the change that a CDC event stands for: c, u, d or r.
	Op = "op"
	// LSN is the log position of a CDC event.
	LSN = "lsn"

	// ErrorCode, ErrorData and ErrorDest say why and where delivery failed; they
	// are Knative's names and are set on dead letters only.
	ErrorCode = "knativeerrorcode"
	ErrorData = "knativeerrordata"
	ErrorDest = "knativeerrordest"
)
