//go:build !linux

package main

import (
	"context"
	"errors"
)

// load needs epoll.
func load(context.Context, loadConfig) (*loadResult, error) {
	return nil, errors.New("the HTTP loader and the accounting by /proc run on Linux only")
}
