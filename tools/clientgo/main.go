// Command clientgo is the reference for tests of our own reader of kubeconfigs: it prints what k8s.io/client-go makes of the
// same files and variables.
//
//	clientgo config  what a request to the API server would carry, as JSON; nothing is sent
//	clientgo get     connects with it, and prints the answer's status
//	clientgo pem     reads base64 lines, and prints what Go's trust store takes of each
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/transport"
)

// answer is the normal form in which both implementations are compared.
type answer struct {
	Error             string              `json:"error,omitempty"`
	URL               string              `json:"url,omitempty"`
	Headers           map[string][]string `json:"headers,omitempty"`
	Roots             []string            `json:"roots,omitempty"`
	ServerName        string              `json:"server_name,omitempty"`
	Insecure          bool                `json:"insecure,omitempty"`
	ClientCertificate string              `json:"client_certificate,omitempty"`
	Proxy             string              `json:"proxy,omitempty"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: clientgo config|get|pem")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "config":
		result, err := describe()
		if err != nil {
			result = &answer{Error: err.Error()}
		}
		print(result)
	case "get":
		status, err := get()
		if err != nil {
			print(&answer{Error: err.Error()})
		} else {
			print(map[string]int{"status": status})
		}
	case "pem":
		lines := bufio.NewScanner(os.Stdin)
		lines.Buffer(nil, 1<<24)
		for lines.Scan() {
			data, err := base64.StdEncoding.DecodeString(lines.Text())
			if err != nil {
				panic(err)
			}
			print(readPEM(data))
		}
	}
}

func print(value any) {
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
}

func fingerprint(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

// variable reads a variable that may have the prefix of Calico's own configuration.
func variable(name string) string {
	if value := os.Getenv("CALICO_" + name); value != "" {
		return value
	}
	return os.Getenv(name)
}

// load reads the configuration from the sources and with the overrides that the original takes.
func load() (*rest.Config, error) {
	rules := clientcmd.ClientConfigLoadingRules{}
	files := filepath.SplitList(variable("KUBECONFIG"))
	if len(files) == 1 {
		rules.ExplicitPath = files[0]
	} else {
		rules.Precedence = files
	}
	overrides := &clientcmd.ConfigOverrides{CurrentContext: variable("K8S_CURRENT_CONTEXT")}
	overrides.ClusterInfo.Server = variable("K8S_API_ENDPOINT")
	overrides.ClusterInfo.CertificateAuthority = variable("K8S_CA_FILE")
	overrides.AuthInfo.ClientCertificate = variable("K8S_CERT_FILE")
	overrides.AuthInfo.ClientKey = variable("K8S_KEY_FILE")
	overrides.AuthInfo.Token = variable("K8S_API_TOKEN")
	overrides.ClusterInfo.InsecureSkipTLSVerify, _ = strconv.ParseBool(variable("K8S_INSECURE_SKIP_TLS_VERIFY"))
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(&rules, overrides).ClientConfig()
	if err != nil {
		return nil, err
	}
	config.UserAgent = "typha"
	config.GroupVersion = &schema.GroupVersion{}
	config.NegotiatedSerializer = serializer.NewCodecFactory(runtime.NewScheme())
	return config, nil
}

// recorder takes the request that the transport's wrappers have completed, instead of the network.
type recorder struct{ header http.Header }

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	r.header = request.Header
	return &http.Response{StatusCode: 200, Body: http.NoBody, Header: http.Header{}, Request: request}, nil
}

func describe() (*answer, error) {
	config, err := load()
	if err != nil {
		return nil, err
	}
	transportConfig, err := config.TransportConfig()
	if err != nil {
		return nil, err
	}
	tlsConfig, err := transport.TLSConfigFor(transportConfig)
	if err != nil {
		return nil, err
	}
	client, err := rest.UnversionedRESTClientForConfigAndClient(config, http.DefaultClient)
	if err != nil {
		return nil, err
	}
	address := client.Get().AbsPath("/version").URL()
	request, err := http.NewRequest("GET", address.String(), nil)
	if err != nil {
		return nil, err
	}
	recorded := &recorder{}
	wrapped, err := transport.HTTPWrappersForConfig(transportConfig, recorded)
	if err != nil {
		return nil, err
	}
	if _, err := (&http.Client{Transport: wrapped}).Do(request); err != nil {
		return nil, err
	}
	recorded.header.Del("User-Agent")
	address.User = nil
	result := &answer{URL: address.String(), Headers: recorded.header}
	if config.Proxy == nil {
		config.Proxy = http.ProxyFromEnvironment
	}
	var proxy *url.URL
	if proxy, err = config.Proxy(request); err != nil {
		return nil, err
	}
	if proxy != nil {
		result.Proxy = proxy.String()
	}
	if tlsConfig == nil || address.Scheme != "https" {
		return result, nil
	}
	return result, describeTLS(tlsConfig, result)
}

func describeTLS(config *tls.Config, result *answer) error {
	result.ServerName = config.ServerName
	result.Insecure = config.InsecureSkipVerify
	if config.RootCAs != nil {
		for _, subject := range config.RootCAs.Subjects() { //nolint:staticcheck // complete for pools that are read from files
			result.Roots = append(result.Roots, fingerprint(subject))
		}
		sort.Strings(result.Roots)
	}
	if config.GetClientCertificate == nil {
		return nil
	}
	certificate, err := config.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil {
		return err
	}
	if len(certificate.Certificate) > 0 {
		result.ClientCertificate = fingerprint(certificate.Certificate[0])
	}
	return nil
}

func get() (int, error) {
	config, err := load()
	if err != nil {
		return 0, err
	}
	config.Timeout = 10 * time.Second
	httpClient, err := rest.HTTPClientFor(config)
	if err != nil {
		return 0, err
	}
	client, err := rest.UnversionedRESTClientForConfigAndClient(config, httpClient)
	if err != nil {
		return 0, err
	}
	var status int
	result := client.Get().AbsPath("/version").Do(context.Background()).StatusCode(&status)
	if status == 0 {
		return 0, result.Error()
	}
	return status, nil
}

type parsed struct {
	Blocks [][]string `json:"blocks"`
	Roots  []string   `json:"roots"`
}

// readPEM lists every block (its type, its number of headers and its content), and what a trust store takes of them.
func readPEM(data []byte) parsed {
	result := parsed{Blocks: [][]string{}, Roots: []string{}}
	for rest := data; len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		fields := []string{base64.StdEncoding.EncodeToString([]byte(block.Type)), strconv.Itoa(len(block.Headers)), fingerprint(block.Bytes)}
		result.Blocks = append(result.Blocks, fields)
		if block.Type != "CERTIFICATE" || len(block.Headers) != 0 {
			continue
		}
		pool := x509.NewCertPool()
		if pool.AppendCertsFromPEM(pem.EncodeToMemory(block)) {
			result.Roots = append(result.Roots, fingerprint(block.Bytes))
		}
	}
	return result
}
