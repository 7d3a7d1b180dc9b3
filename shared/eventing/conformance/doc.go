// Package conformance says, as a table, what delivering events by Knative's
// manifests means: given subscribers that behave in a known way and some manifests,
// when events are sent, then these deliveries happen. The table runs against
// anything that executes such manifests, through a Driver: the eventing engine in
// its own tests, and a real Knative.
//
// It is not a test of Knative's data plane in general: it holds what this project
// relies on.
package conformance
