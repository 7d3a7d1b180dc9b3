package main

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
)

// What is reached from outside in production takes no events and asks for a token.
// ingest has a token of its own.
func TestOutsideReachesGuardedServicesOnly(t *testing.T) {
	r, err := Load(t.Context(), "../..")
	if err != nil {
		t.Fatal(err)
	}
	guarded := map[string]bool{}
	for _, m := range r.Overlays[overlayDir+"/production"] {
		svc, ok := m.Object.(*servingv1.Service)
		if !ok || svc.Labels["networking.knative.dev/visibility"] == "cluster-local" || svc.Name == "ingest" {
			continue
		}
		env := svc.Spec.Template.Spec.Containers[0].Env
		only := slices.ContainsFunc(env, func(e corev1.EnvVar) bool { return e.Name == "API_ONLY" && e.Value == "true" })
		tokens := slices.ContainsFunc(env, func(e corev1.EnvVar) bool {
			return e.Name == "API_TOKENS" && e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil && e.ValueFrom.SecretKeyRef.Optional == nil
		})
		if !only || !tokens {
			t.Errorf("Service %s is reached from outside: it needs API_ONLY and, from a Secret, API_TOKENS", svc.Name)
		}
		guarded[svc.Name] = true
	}
	if !guarded["predict-api"] || !guarded["featurize-api"] || len(guarded) != 2 {
		t.Errorf("reached from outside are %v", guarded)
	}
	names := 0
	for _, m := range r.Overlays[overlayDir+"/production"] {
		if d, ok := m.Object.(*servingv1beta1.DomainMapping); ok {
			names++
			if !guarded[d.Spec.Ref.Name] {
				t.Errorf("%s leads to %s, which is not guarded", d.Name, d.Spec.Ref.Name)
			}
		}
	}
	if names != 2 {
		t.Errorf("%d names lead to Services", names)
	}
}
