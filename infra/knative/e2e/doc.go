// Package e2e holds the tests of the whole platform on a real Knative: whatever
// cluster KUBECONFIG points at, with the overlay infra/knative/overlays/test on it.
//
// `make e2e` runs them. They need kubectl, ko, a registry in KO_DOCKER_REPO that the
// cluster can pull from, and Knative Serving and Eventing; without one of these they
// are skipped, with the reason. What they deploy stays for a look afterwards; every
// run has events of its own, so that it can be run again on what is there.
package e2e
