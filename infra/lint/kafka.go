package main

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	eventingduckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// The types below stand in for those of Knative's Kafka extension (1.23), whose
// module the proxy does not serve. They hold every field of the two
// CustomResourceDefinitions' spec, so that strict decoding refuses what a cluster
// would drop, and the rules of their webhooks.

// KafkaSource is sources.knative.dev/v1.
type KafkaSource struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              KafkaSourceSpec `json:"spec,omitempty"`
}

// KafkaSourceSpec says which topics go where.
type KafkaSourceSpec struct {
	Consumers         *int32                       `json:"consumers,omitempty"`
	BootstrapServers  []string                     `json:"bootstrapServers"`
	Net               KafkaNet                     `json:"net,omitempty"`
	Topics            []string                     `json:"topics"`
	ConsumerGroup     string                       `json:"consumerGroup,omitempty"`
	InitialOffset     string                       `json:"initialOffset,omitempty"`
	Delivery          *eventingduckv1.DeliverySpec `json:"delivery,omitempty"`
	Ordering          string                       `json:"ordering,omitempty"`
	duckv1.SourceSpec `json:",inline"`
}

// KafkaNet is how to reach a Kafka that asks for credentials.
type KafkaNet struct {
	SASL struct {
		Enable        bool      `json:"enable,omitempty"`
		User          SecretRef `json:"user,omitempty"`
		Password      SecretRef `json:"password,omitempty"`
		RoleARN       SecretRef `json:"roleARN,omitempty"`
		TokenProvider SecretRef `json:"tokenProvider,omitempty"`
		Type          SecretRef `json:"type,omitempty"`
	} `json:"sasl,omitempty"`
	TLS struct {
		Enable bool      `json:"enable,omitempty"`
		Cert   SecretRef `json:"cert,omitempty"`
		Key    SecretRef `json:"key,omitempty"`
		CACert SecretRef `json:"caCert,omitempty"`
	} `json:"tls,omitempty"`
}

// SecretRef is a value kept in a Secret.
type SecretRef struct {
	SecretKeyRef *corev1.SecretKeySelector `json:"secretKeyRef,omitempty"`
}

// SetDefaults is what the webhook does.
func (k *KafkaSource) SetDefaults(ctx context.Context) {
	if k.Spec.InitialOffset == "" {
		k.Spec.InitialOffset = "latest"
	}
	if k.Spec.Ordering == "" {
		k.Spec.Ordering = "ordered"
	}
	ctx = apis.WithinParent(ctx, k.ObjectMeta)
	k.Spec.Sink.SetDefaults(ctx)
	k.Spec.Delivery.SetDefaults(ctx)
}

// Validate is the webhook's, and requires besides what its defaults get wrong for
// us: without a group name a new source reads everything again, and without an
// initial offset it skips what is there.
func (k *KafkaSource) Validate(ctx context.Context) *apis.FieldError {
	s := k.Spec
	errs := s.SourceSpec.Validate(ctx)
	errs = errs.Also(s.Delivery.Validate(ctx).ViaField("delivery"))
	if len(s.Topics) == 0 {
		errs = errs.Also(apis.ErrMissingField("topics"))
	}
	if len(s.BootstrapServers) == 0 {
		errs = errs.Also(apis.ErrMissingField("bootstrapServers"))
	}
	if s.ConsumerGroup == "" {
		errs = errs.Also(apis.ErrMissingField("consumerGroup"))
	}
	if s.InitialOffset != "earliest" {
		errs = errs.Also(apis.ErrInvalidValue(s.InitialOffset, "initialOffset", "must be earliest: with latest, records from before the first start are lost"))
	}
	if !slices.Contains([]string{"ordered", "unordered"}, s.Ordering) {
		errs = errs.Also(apis.ErrInvalidValue(s.Ordering, "ordering"))
	}
	return errs.ViaField("spec")
}

// DeepCopyObject copies what defaulting changes.
func (k *KafkaSource) DeepCopyObject() runtime.Object {
	c := *k
	k.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	c.Spec.Delivery = k.Spec.Delivery.DeepCopy()
	k.Spec.SourceSpec.DeepCopyInto(&c.Spec.SourceSpec)
	return &c
}

// KafkaSink is eventing.knative.dev/v1alpha1.
type KafkaSink struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              KafkaSinkSpec `json:"spec,omitempty"`
}

// KafkaSinkSpec says which topic events go to.
type KafkaSinkSpec struct {
	Topic             string   `json:"topic"`
	NumPartitions     *int32   `json:"numPartitions,omitempty"`
	ReplicationFactor *int16   `json:"replicationFactor,omitempty"`
	BootstrapServers  []string `json:"bootstrapServers"`
	ContentMode       string   `json:"contentMode,omitempty"`
	Auth              *struct {
		Secret *struct {
			Ref *struct {
				Name string `json:"name"`
			} `json:"ref,omitempty"`
		} `json:"secret,omitempty"`
	} `json:"auth,omitempty"`
}

// SetDefaults is what the webhook does.
func (k *KafkaSink) SetDefaults(context.Context) {
	if k.Spec.ContentMode == "" {
		k.Spec.ContentMode = "binary"
	}
}

// Validate is the webhook's, but for the content mode: every reader of our topics
// expects the binary one.
func (k *KafkaSink) Validate(context.Context) *apis.FieldError {
	s := k.Spec
	var errs *apis.FieldError
	if s.Topic == "" {
		errs = errs.Also(apis.ErrMissingField("topic"))
	}
	if len(s.BootstrapServers) == 0 {
		errs = errs.Also(apis.ErrMissingField("bootstrapServers"))
	}
	if s.ContentMode != "binary" {
		errs = errs.Also(apis.ErrInvalidValue(s.ContentMode, "contentMode", "must be binary: the lake and the relay read no structured events"))
	}
	if s.NumPartitions != nil && *s.NumPartitions <= 0 {
		errs = errs.Also(apis.ErrInvalidValue(*s.NumPartitions, "numPartitions"))
	}
	if s.ReplicationFactor != nil && *s.ReplicationFactor <= 0 {
		errs = errs.Also(apis.ErrInvalidValue(*s.ReplicationFactor, "replicationFactor"))
	}
	return errs.ViaField("spec")
}

// DeepCopyObject copies what defaulting changes.
func (k *KafkaSink) DeepCopyObject() runtime.Object {
	c := *k
	k.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	return &c
}

func addKafkaToScheme(s *runtime.Scheme) error {
	s.AddKnownTypeWithName(schema.GroupVersionKind{Group: "sources.knative.dev", Version: "v1", Kind: "KafkaSource"}, &KafkaSource{})
	s.AddKnownTypeWithName(schema.GroupVersionKind{Group: "eventing.knative.dev", Version: "v1alpha1", Kind: "KafkaSink"}, &KafkaSink{})
	return nil
}
