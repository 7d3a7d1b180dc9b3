package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	sinksv1alpha1 "knative.dev/eventing/pkg/apis/sinks/v1alpha1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// allowPrefix begins an annotation that exempts an object from one container
// check: "millrace.dev/allow-<check>: <reason>". One that exempts from nothing is
// itself a problem, so that exemptions do not outlive their reason.
const allowPrefix = "millrace.dev/allow-"

// ownImages begins the images that ko builds from this repository's functions.
const ownImages = "ko://github.com/millrace-dev/millrace/functions/"

// podSpec gives the pod that an object runs and where it is in the manifest.
func podSpec(m *Manifest) (*corev1.PodSpec, string) {
	switch o := m.Object.(type) {
	case *servingv1.Service:
		return &o.Spec.Template.Spec.PodSpec, "spec.template.spec"
	case *appsv1.Deployment:
		return &o.Spec.Template.Spec, "spec.template.spec"
	case *appsv1.StatefulSet:
		return &o.Spec.Template.Spec, "spec.template.spec"
	case *appsv1.DaemonSet:
		return &o.Spec.Template.Spec, "spec.template.spec"
	case *batchv1.Job:
		return &o.Spec.Template.Spec, "spec.template.spec"
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template.Spec, "spec.jobTemplate.spec.template.spec"
	case *sinksv1alpha1.JobSink:
		if o.Spec.Job != nil {
			return &o.Spec.Job.Spec.Template.Spec, "spec.job.spec.template.spec"
		}
	}
	return nil, ""
}

// checkContainers requires of every pod what a hardened namespace would (the
// "restricted" Pod Security Standard), and besides what makes it predictable:
// requests and limits, a probe, a pinned image, no secret in the manifest.
func checkContainers(m *Manifest) []Problem {
	pod, at := podSpec(m)
	if pod == nil {
		return nil
	}
	c := containerChecks{m: m}
	c.require("token", pod.AutomountServiceAccountToken != nil && !*pod.AutomountServiceAccountToken || pod.ServiceAccountName != "",
		at+".automountServiceAccountToken", "must be false: nothing here talks to the API server")
	c.require("service-links", pod.EnableServiceLinks != nil && !*pod.EnableServiceLinks,
		at+".enableServiceLinks", "must be false: else every Service of the namespace adds variables to each start")
	c.require("host", !pod.HostNetwork && !pod.HostPID && !pod.HostIPC, at, "must not share the node's network or processes")
	for i, v := range pod.Volumes {
		c.require("host", v.HostPath == nil, fmt.Sprintf("%s.volumes[%d].hostPath", at, i), "must not mount the node's disk")
	}
	for i := range pod.InitContainers {
		c.container(pod, &pod.InitContainers[i], fmt.Sprintf("%s.initContainers[%d]", at, i))
	}
	for i := range pod.Containers {
		path := fmt.Sprintf("%s.containers[%d]", at, i)
		c.container(pod, &pod.Containers[i], path)
		c.probe(&pod.Containers[i], path)
	}
	return c.exempt()
}

type containerChecks struct {
	m        *Manifest
	problems []Problem
}

func (c *containerChecks) require(check string, ok bool, path, format string, args ...any) {
	if !ok {
		p := c.m.problem(path, format, args...)
		p.check = check
		c.problems = append(c.problems, p)
	}
}

var secretName = regexp.MustCompile(`(?i)(secret|passw|token|credential|access_?key|private_?key|api_?key)`)

func (c *containerChecks) container(pod *corev1.PodSpec, k *corev1.Container, path string) {
	sc, psc := k.SecurityContext, pod.SecurityContext
	if sc == nil {
		sc = &corev1.SecurityContext{}
	}
	if psc == nil {
		psc = &corev1.PodSecurityContext{}
	}
	at := path + ".securityContext."
	c.require("root", isTrue(first(sc.RunAsNonRoot, psc.RunAsNonRoot)), at+"runAsNonRoot", "must be true")
	uid := first(sc.RunAsUser, psc.RunAsUser)
	c.require("root", uid == nil || *uid != 0, at+"runAsUser", "must not be 0, which is root")
	c.require("writable-root", isTrue(sc.ReadOnlyRootFilesystem), at+"readOnlyRootFilesystem", "must be true; mount an emptyDir where it has to write")
	c.require("escalation", sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation, at+"allowPrivilegeEscalation", "must be false")
	c.require("escalation", !isTrue(sc.Privileged), at+"privileged", "must not be true")
	caps := sc.Capabilities
	c.require("capabilities", caps != nil && slices.Contains(caps.Drop, "ALL") && len(caps.Add) == 0, at+"capabilities", "must drop [ALL] and add none")
	seccomp := first(sc.SeccompProfile, psc.SeccompProfile)
	c.require("seccomp", seccomp != nil && seccomp.Type == corev1.SeccompProfileTypeRuntimeDefault, at+"seccompProfile.type", "must be RuntimeDefault")

	r := k.Resources
	for _, want := range []struct {
		list corev1.ResourceList
		name corev1.ResourceName
		path string
	}{
		{r.Requests, corev1.ResourceCPU, "requests.cpu"},
		{r.Requests, corev1.ResourceMemory, "requests.memory"},
		{r.Limits, corev1.ResourceMemory, "limits.memory"},
	} {
		_, ok := want.list[want.name]
		c.require("resources", ok, path+".resources."+want.path, "missing")
	}

	c.image(k.Image, path+".image")
	c.env(k, path)
}

func (c *containerChecks) image(image, path string) {
	if strings.HasPrefix(image, "ko://") {
		return // ko writes the digest
	}
	name, digest, _ := strings.Cut(image, "@")
	_, tag, _ := strings.Cut(name[strings.LastIndex(name, "/")+1:], ":")
	c.require("image", digest != "" || tag != "" && tag != "latest", path, "%q is not pinned: name a version or a digest", image)
}

func (c *containerChecks) env(k *corev1.Container, path string) {
	for i, e := range k.Env {
		at := fmt.Sprintf("%s.env[%d]", path, i)
		if e.Value == "" {
			continue
		}
		c.require("secrets", !secretName.MatchString(e.Name), at+".value", "%s is a secret: take it from one with valueFrom.secretKeyRef", e.Name)
		c.require("secrets", !regexp.MustCompile(`://[^/@\s]+:[^/@\s]+@`).MatchString(e.Value), at+".value", "%s holds a password in its URL: take it from a Secret", e.Name)
		hard, limited := k.Resources.Limits[corev1.ResourceMemory]
		if e.Name != "GOMEMLIMIT" || !limited {
			continue
		}
		soft, err := resource.ParseQuantity(strings.TrimSuffix(e.Value, "B"))
		c.require("resources", err == nil && soft.Cmp(hard) < 0, at+".value", "GOMEMLIMIT %s must be below limits.memory %s", e.Value, hard.String())
	}
}

func (c *containerChecks) probe(k *corev1.Container, path string) {
	if c.m.Kind == "Job" || c.m.Kind == "CronJob" || c.m.Kind == "JobSink" {
		return
	}
	p := k.ReadinessProbe
	if !strings.HasPrefix(k.Image, ownImages) {
		c.require("readiness", p != nil, path+".readinessProbe", "missing")
		return
	}
	c.require("readiness", p != nil && p.HTTPGet != nil && p.HTTPGet.Path == "/readyz", path+".readinessProbe.httpGet.path", "must be /readyz")
}

// exempt takes out what the object's annotations allow.
func (c *containerChecks) exempt() []Problem {
	used := map[string]bool{}
	annotations := c.m.Meta.GetAnnotations()
	kept := slices.DeleteFunc(c.problems, func(p Problem) bool {
		reason, ok := annotations[allowPrefix+p.check]
		used[p.check] = used[p.check] || ok
		return ok && reason != ""
	})
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		check, ok := strings.CutPrefix(key, allowPrefix)
		if !ok {
			continue
		}
		path := "metadata.annotations[" + key + "]"
		if annotations[key] == "" {
			kept = append(kept, c.m.problem(path, "give the reason as its value"))
		} else if !used[check] {
			kept = append(kept, c.m.problem(path, "exempts from nothing: remove it"))
		}
	}
	return kept
}

func first[T any](ps ...*T) *T {
	for _, p := range ps {
		if p != nil {
			return p
		}
	}
	return nil
}

func isTrue(b *bool) bool { return b != nil && *b }
