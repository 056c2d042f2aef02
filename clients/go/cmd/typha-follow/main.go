// Command typha-follow follows a feed, and prints its changes and states.
//
//	typha-follow -address localhost:5473 -feed workloads
//
// It prints the lines that the conformance kit reads: "put KEY" and "delete KEY" for each change, and
// "state STATUS SEQUENCE KEYS DIGEST" after each status. Everything else goes to standard error.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	typha "example.org/typha/clients/go"
)

func main() {
	addresses := flag.String("address", "localhost:5473", "`HOST:PORT` of a server; several with commas")
	feed := flag.String("feed", "", "`name` of the feed")
	node := flag.String("node", os.Getenv("NODE_NAME"), "`name` of this node")
	authorities := flag.String("ca-file", "", "connect by TLS, and trust the authorities in this `file`")
	certificate := flag.String("cert-file", "", "certificate `file`, if the server wants one")
	key := flag.String("key-file", "", "key `file` of the certificate")
	name := flag.String("server-name", "", "`name` in the server's certificate, if not the host")
	kinds := flag.String("kinds", "", "only these `kinds`, such as core/v1/pods, with commas")
	namespaces := flag.String("namespaces", "", "only objects of these `namespaces`, with commas")
	prefixes := flag.String("prefixes", "", "only keys that begin with one of these `prefixes`, with commas")
	ownNode := flag.Bool("own-node", false, "no objects of other nodes")
	flag.Parse()
	options := typha.Options{Addresses: strings.Split(*addresses, ","), Feed: *feed, Agent: "typha-follow", Node: *node, ReportsApplied: true}
	wanted := typha.Subscription{Kinds: list(*kinds), Namespaces: list(*namespaces), Prefixes: list(*prefixes), OwnNode: *ownNode}
	if wanted.Kinds != nil || wanted.Namespaces != nil || wanted.Prefixes != nil || wanted.OwnNode {
		options.Subscription = &wanted
	}
	if *authorities != "" {
		config, err := tlsConfig(*authorities, *certificate, *key, *name)
		if err != nil {
			log.Fatal(err)
		}
		options.TLS = config
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	output := bufio.NewWriter(os.Stdout)
	err := typha.Follow(ctx, options, func(event typha.Event) error { return show(output, event) })
	if !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}

// list splits at commas; nil if there is nothing.
func list(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func show(output *bufio.Writer, event typha.Event) error {
	switch event := event.(type) {
	case typha.Connected:
		log.Printf("connected to %s (%s)", event.Address, event.Software)
	case typha.Disconnected:
		log.Printf("%s: %v; next attempt in %v", event.Address, event.Err, event.RetryIn)
	case typha.Batch:
		for _, change := range event.Changes {
			word := "put"
			if change.Value == nil {
				word = "delete"
			}
			fmt.Fprintln(output, word, change.Key)
		}
		return output.Flush()
	case typha.StatusChanged:
		if event.Status != typha.CatchingUp {
			fmt.Fprintf(output, "state %v %d %d %016x\n", event.Status, event.Sequence, event.Keys, event.Digest)
			return output.Flush()
		}
	}
	return nil
}

func tlsConfig(authorities, certificate, key, name string) (*tls.Config, error) {
	pem, err := os.ReadFile(authorities)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: name}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate", authorities)
	}
	if certificate != "" {
		pair, err := tls.LoadX509KeyPair(certificate, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
