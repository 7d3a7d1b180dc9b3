//go:build tools

// Package edge pins what TLS at the edge is made of where no image can be pulled:
// Kourier's control plane, and cert-manager, whose controllers certificates runs.
package edge

import _ "knative.dev/net-kourier/cmd/kourier"
