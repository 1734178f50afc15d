package wgmsg

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPackageStaysPure keeps I/O, clocks and randomness out: nothing below the package may reach the network, and the package itself, which may
// write down times, may not ask what time it is. (The standard library's own encoding and crypto packages reach os, time and crypto/rand, so
// those are forbidden to the package, not to all below it.)
func TestPackageStaysPure(t *testing.T) {
	list := func(args ...string) []string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
		}
		return strings.Fields(string(out))
	}
	for _, forbidden := range []string{"net", "net/http", "os/exec", "log", "log/slog", "golang.org/x/sys/unix"} {
		if slices.Contains(list("-deps", "."), forbidden) {
			t.Errorf("the package depends on %s", forbidden)
		}
	}
	for _, forbidden := range []string{"os", "syscall", "math/rand", "math/rand/v2", "crypto/rand"} {
		if slices.Contains(list("-f", `{{join .Imports "\n"}}`, "."), forbidden) {
			t.Errorf("the package imports %s", forbidden)
		}
	}

	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range file.Imports {
			if i.Path.Value == `"time"` && i.Name != nil {
				t.Errorf("%s: time under another name", fset.Position(i.Pos()))
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				pkg, ok := sel.X.(*ast.Ident)
				if ok && pkg.Name == "time" && !slices.Contains([]string{"Time", "Unix"}, sel.Sel.Name) {
					t.Errorf("%s: the package uses time.%s", fset.Position(sel.Pos()), sel.Sel.Name)
				}
			}
			return true
		})
	}
}
