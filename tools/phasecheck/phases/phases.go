// Package phases is an analyzer of two mistakes that have once counted work twice:
//
//   - a handler of a phase that does not begin by asking whether its phase has done its work for the generation that is
//     wanted, and
//   - an event that is not part of the transaction that makes its transition.
//
// A handler is a function that is called where a function switches over a record's Phase, and that returns what that function
// returns. It must begin with
//
//	if rec.Work.Done(rec.Phase) {
//		return ...
//	}
//
// An event is a value of the type Event beside a type Txn. It must go into the field Event of a Txn that compares something
// and changes something, at once or by way of a function that returns the event
// or is given it and returns the Txn. Only packages that write are looked at: those
// whose path ends in one of the elements of -packages. Tests are not.
//
// What is built by reflection or passed through other fields is not seen.
package phases

import (
	"go/ast"
	"go/token"
	"go/types"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/ast/inspector"
)

// Analyzer is the check.
var Analyzer = &analysis.Analyzer{
	Name: "phases",
	Doc:  "find phase handlers without the generation check, and events outside the transaction of their transition",
	Run:  run,
}

var packages = "pool,lifecycle"

func init() {
	Analyzer.Flags.StringVar(&packages, "packages", packages, "comma-separated last elements of the paths of packages that write")
}

func run(pass *analysis.Pass) (any, error) {
	path := strings.Split(pass.Pkg.Path(), "/")
	if !slices.Contains(strings.Split(packages, ","), path[len(path)-1]) {
		return nil, nil
	}
	c := &checker{Pass: pass, decls: make(map[*types.Func]*ast.FuncDecl)}
	for _, file := range pass.Files {
		if strings.HasSuffix(pass.Fset.Position(file.Pos()).Filename, "_test.go") {
			continue
		}
		c.files = append(c.files, file)
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				c.decls[pass.TypesInfo.Defs[f.Name].(*types.Func)] = f
			}
		}
	}
	c.handlers()
	c.events()
	return nil, nil
}

type checker struct {
	*analysis.Pass
	files []*ast.File
	decls map[*types.Func]*ast.FuncDecl
}

// handlers checks all that are called by a function that switches over a Phase.
func (c *checker) handlers() {
	checked := make(map[*types.Func]bool)
	for dispatcher, decl := range c.decls {
		if !c.dispatches(decl) {
			continue
		}
		ast.Inspect(decl.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, _ := c.TypesInfo.Uses[lastIdent(call.Fun)].(*types.Func)
			if h := c.decls[f]; h != nil && !checked[f] && sameResult(f, dispatcher) {
				checked[f] = true
				c.handler(h)
			}
			return true
		})
	}
}

// dispatches reports whether a function returns one value of its package and switches over the Phase of a record it is given.
func (c *checker) dispatches(f *ast.FuncDecl) (found bool) {
	results := c.TypesInfo.Defs[f.Name].Type().(*types.Signature).Results()
	if results.Len() != 1 {
		return false
	}
	if named, ok := results.At(0).Type().(*types.Named); !ok || named.Obj().Pkg() != c.Pkg || named.Obj().Name() != "Move" {
		return false
	}
	ast.Inspect(f.Body, func(n ast.Node) bool {
		if s, ok := n.(*ast.SwitchStmt); ok && isField(s.Tag, "Phase") {
			found = true
		}
		return !found
	})
	return found
}

func sameResult(a, b *types.Func) bool {
	ra, rb := a.Type().(*types.Signature).Results(), b.Type().(*types.Signature).Results()
	return ra.Len() == 1 && rb.Len() == 1 && types.Identical(ra.At(0).Type(), rb.At(0).Type())
}

func (c *checker) handler(f *ast.FuncDecl) {
	if len(f.Body.List) > 0 && isCheck(f.Body.List[0]) {
		return
	}
	c.Reportf(f.Name.Pos(), "phase handler %s does not begin with the generation check: if rec.Work.Done(rec.Phase) { return ... }", f.Name.Name)
}

// isCheck recognises `if rec.Work.Done(rec.Phase) { return ... }`.
func isCheck(s ast.Stmt) bool {
	check, ok := s.(*ast.IfStmt)
	if !ok || check.Init != nil || check.Else != nil || len(check.Body.List) != 1 {
		return false
	}
	if _, returns := check.Body.List[0].(*ast.ReturnStmt); !returns {
		return false
	}
	call, ok := check.Cond.(*ast.CallExpr)
	if !ok || len(call.Args) != 1 {
		return false
	}
	done, ok := call.Fun.(*ast.SelectorExpr)
	return ok && done.Sel.Name == "Done" && isField(done.X, "Work") && isField(call.Args[0], "Phase") && sameRecord(done.X, call.Args[0])
}

func isField(e ast.Expr, name string) bool {
	s, ok := e.(*ast.SelectorExpr)
	return ok && s.Sel.Name == name
}

// sameRecord reports whether two fields are of the same variable: the check of another record is none.
func sameRecord(a, b ast.Expr) bool {
	x, ok := a.(*ast.SelectorExpr).X.(*ast.Ident)
	y, also := b.(*ast.SelectorExpr).X.(*ast.Ident)
	return ok && also && x.Name == y.Name
}

func lastIdent(e ast.Expr) *ast.Ident {
	switch e := e.(type) {
	case *ast.Ident:
		return e
	case *ast.SelectorExpr:
		return e.Sel
	}
	return nil
}

// events checks where each event goes, and what each transaction with an event is made of.
func (c *checker) events() {
	in := inspector.New(c.files)
	for cur := range in.Root().Preorder((*ast.CompositeLit)(nil), (*ast.CallExpr)(nil)) {
		stack := stackOf(cur)
		switch n := cur.Node().(type) {
		case *ast.CompositeLit:
			switch {
			case c.is(n, "Event"):
				c.event(n, stack)
			case c.is(n, "Txn"):
				c.txn(n, stack)
			}
		case *ast.CallExpr:
			if c.is(n, "Event") && !isConversion(c, n) {
				c.event(n, stack)
			}
		}
	}
}

// stackOf lists a node's surroundings, the nearest first.
func stackOf(cur inspector.Cursor) (stack []ast.Node) {
	for up := range cur.Enclosing() {
		stack = append(stack, up.Node())
	}
	return stack[1:]
}

func isConversion(c *checker, call *ast.CallExpr) bool { return c.TypesInfo.Types[call.Fun].IsType() }

// is reports whether an expression is a value of a type of that name, or a pointer to one, in a package that has the types Txn
// and Event.
func (c *checker) is(e ast.Expr, name string) bool {
	return c.named(c.TypesInfo.TypeOf(e), name)
}

func (c *checker) named(t types.Type, name string) bool {
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	named, ok := t.(*types.Named)
	if !ok || named.Obj().Name() != name || named.Obj().Pkg() == nil {
		return false
	}
	scope := named.Obj().Pkg().Scope()
	return scope.Lookup("Txn") != nil && scope.Lookup("Event") != nil
}

// event checks that an event that comes into being goes into a transaction.
func (c *checker) event(e ast.Expr, stack []ast.Node) {
	var from ast.Node = e
	for _, n := range stack {
		switch n := n.(type) {
		case *ast.UnaryExpr, *ast.ParenExpr:
			from = n
			continue
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Event" && n.Value == from {
				return // of a Txn: no other type has such a field that takes an event, or it is not written as one
			}
		case *ast.AssignStmt:
			if c.intoTxn(n, from) {
				return
			}
		case *ast.CallExpr:
			if n != from && c.givesTxn(n) {
				return // which puts it into what it returns
			}
		case *ast.ReturnStmt:
			if f := enclosing(stack); f != nil && c.givesEvent(f) {
				return // whoever calls it is checked
			}
		}
		break
	}
	c.Reportf(e.Pos(), "an event outside the transaction of its transition: put it into the Event of the Txn that makes the change")
}

// givesTxn reports whether a call returns a transaction, alone or before other values.
func (c *checker) givesTxn(call *ast.CallExpr) bool {
	s, ok := c.TypesInfo.TypeOf(call.Fun).(*types.Signature)
	return ok && s.Results().Len() > 0 && c.named(s.Results().At(0).Type(), "Txn")
}

// intoTxn reports whether an assignment puts a value into the Event of a Txn.
func (c *checker) intoTxn(a *ast.AssignStmt, value ast.Node) bool {
	for i, r := range a.Rhs {
		if r != value || i >= len(a.Lhs) {
			continue
		}
		field, ok := a.Lhs[i].(*ast.SelectorExpr)
		return ok && field.Sel.Name == "Event" && c.is(field.X, "Txn")
	}
	return false
}

func enclosing(stack []ast.Node) ast.Node {
	for _, n := range stack {
		switch n.(type) {
		case *ast.FuncDecl, *ast.FuncLit:
			return n
		}
	}
	return nil
}

func (c *checker) givesEvent(f ast.Node) bool {
	var t *ast.FuncType
	switch f := f.(type) {
	case *ast.FuncDecl:
		t = f.Type
	case *ast.FuncLit:
		t = f.Type
	}
	return t.Results != nil && len(t.Results.List) > 0 && c.is(t.Results.List[0].Type, "Event")
}

// txn checks a transaction that is written with its event: it compares something and changes something.
func (c *checker) txn(lit *ast.CompositeLit, stack []ast.Node) {
	has := make(map[string]bool)
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok {
			if key, ok := kv.Key.(*ast.Ident); ok {
				has[key.Name] = true
			}
		}
	}
	if !has["Event"] {
		return
	}
	for _, later := range c.setIn(enclosing(stack)) {
		has[later] = true
	}
	if !has["If"] {
		c.Reportf(lit.Pos(), "a transition with an event that compares nothing: it would be made twice")
	}
	if !has["Put"] && !has["Delete"] {
		c.Reportf(lit.Pos(), "an event without a change: nothing keeps it from being written again")
	}
}

// setIn lists the fields of transactions that a function assigns. One that is handed to a call whose result is not used is
// taken to be changed there.
func (c *checker) setIn(f ast.Node) (fields []string) {
	if f == nil {
		return nil
	}
	ast.Inspect(f, func(n ast.Node) bool {
		if s, ok := n.(*ast.ExprStmt); ok {
			if call, ok := s.X.(*ast.CallExpr); ok && slices.ContainsFunc(call.Args, func(e ast.Expr) bool { return c.is(e, "Txn") }) {
				fields = append(fields, "Put")
			}
		}
		a, ok := n.(*ast.AssignStmt)
		if !ok || a.Tok != token.ASSIGN {
			return true
		}
		for _, l := range a.Lhs {
			if field, ok := l.(*ast.SelectorExpr); ok && c.is(field.X, "Txn") {
				fields = append(fields, field.Sel.Name)
			}
		}
		return true
	})
	return fields
}
