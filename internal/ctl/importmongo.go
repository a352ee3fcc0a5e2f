package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/rotatord/rotatord/internal/ctl/mongoexport"
	rotatorv1 "github.com/rotatord/rotatord/proto/rotator/v1"
)

func (c *cli) importCommand() *cobra.Command {
	return group("import", "Take over pools from other systems", c.importMongoCommand())
}

const importMongoHelp = `Take over a pool from files that mongoexport wrote, of either origin layout:

  --keys      openhands_keys          or  troll_keys
  --backups   openhands_backup_keys   or  backup_keys
  --bindings  openhands_bindings      or  proxy_key_bindings

Files may hold one document a line or one array. The pool is created if it is not there. A key gets a slot of its own
name; statuses, cool-downs, spend, bindings and priorities are kept. Backups that were used are not imported: those
that are active are there already, and the others are gone.

Nothing is dropped in silence: what was skipped, changed, repeated or left out is in the report (in full with -o json).
The exit code is 1 if anything was refused: a broken document, a duplicate that contradicts another, a key the service
did not take, an active binding whose key is nowhere.

It can be run again: what is there already is counted as same. A binding that differs from the files is set anew.
--dry-run changes nothing and reports what would happen.`

// mongoFiles are the flags.
type mongoFiles struct {
	keys, backups, bindings string
	dryRun                  bool
}

func (c *cli) importMongoCommand() *cobra.Command {
	var files mongoFiles
	cmd := &cobra.Command{
		Use:   "mongo POOL --keys FILE",
		Short: "Take over a pool from files that mongoexport wrote",
		Long:  importMongoHelp,
		Args:  exactly("POOL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.guardSecret(); err != nil {
				return err
			}
			source, err := c.readMongo(files)
			if err != nil {
				return err
			}
			return c.importMongo(cmd.Context(), args[0], source, files)
		},
		ValidArgsFunction: completeArgs(false, c.suggestPools),
	}
	flags := cmd.Flags()
	flags.StringVar(&files.keys, "keys", "", "`file` with the active keys; required")
	flags.StringVar(&files.backups, "backups", "", "`file` with the backup keys")
	flags.StringVar(&files.bindings, "bindings", "", "`file` with the bindings")
	flags.BoolVar(&files.dryRun, "dry-run", false, "change nothing, say what would happen")
	if err := cmd.MarkFlagRequired("keys"); err != nil {
		panic(err)
	}
	return cmd
}

// maxExport is the largest export we read, in bytes.
const maxExport = 256 << 20

// mongoSource is what the files say.
type mongoSource struct {
	keys     mongoexport.File[mongoexport.Key]
	backups  mongoexport.File[mongoexport.Backup]
	bindings mongoexport.File[mongoexport.Binding]
}

func (c *cli) readMongo(files mongoFiles) (mongoSource, error) {
	var source mongoSource
	names := []string{files.keys, files.backups, files.bindings}
	texts := make([][]byte, len(names))
	if i := slices.Index(names, "-"); i >= 0 && slices.Contains(names[i+1:], "-") {
		return source, usagef("only one of the files can be standard input")
	}
	for i, name := range names {
		if name == "" {
			continue
		}
		var err error
		if texts[i], err = c.readFile(name, maxExport); err != nil {
			return source, err
		}
	}
	source.keys = mongoexport.ParseKeys(texts[0])
	source.backups = mongoexport.ParseBackups(texts[1])
	source.bindings = mongoexport.ParseBindings(texts[2])
	if source.keys.Documents() == 0 {
		return source, usagef("%s holds no documents", fileName(files.keys))
	}
	return source, nil
}

// mongoImport is one run of `import mongo`.
type mongoImport struct {
	c      *cli
	pool   string
	dryRun bool
	exists bool
	// absent: the pool is not there and will not be, so the service cannot be asked about it.
	absent bool
	// revision is the newest the service told: reads must not answer from before it.
	revision int64
	report   *mongoReport
	// slots are the open slots, by name; slotOf are those of active keys, by key id.
	slots  map[string]bool
	slotOf map[string]string
}

func (c *cli) importMongo(ctx context.Context, pool string, source mongoSource, files mongoFiles) error {
	run := &mongoImport{c: c, pool: pool, dryRun: files.dryRun, slots: map[string]bool{}, slotOf: map[string]string{}}
	run.report = newMongoReport(pool, files, source)
	err := run.all(ctx, source)
	// What was done before an error is told too. A failed first look has nothing to tell.
	if err == nil || run.report.started {
		if printErr := run.report.print(c); err == nil {
			err = printErr
		}
	}
	if err != nil {
		return adviseImportAgain(err)
	}
	return run.report.verdict()
}

func adviseImportAgain(err error) error {
	if exitCode(err) != exitUnavailable {
		return err
	}
	return again(err, "run the same command again: what was imported is counted as same")
}

// all runs the steps. Each may be repeated, so a crash on any line is repaired by running the command again: keys come
// before the bindings that need their slots.
func (m *mongoImport) all(ctx context.Context, source mongoSource) error {
	if err := m.look(ctx); err != nil {
		return err
	}
	active := planKeys(source.keys.Docs, m.c.sys.Now(), m.report)
	backups := planBackups(source.backups.Docs, active, m.slotOf, m.report)
	proxies := planBindings(source.bindings.Docs, m.report)
	// A wrong file must not leave a pool behind.
	nothing := len(active)+len(backups) == 0
	m.absent = !m.exists && (m.dryRun || nothing)
	m.report.PoolCreated = !m.exists && !nothing
	if err := m.createPool(ctx); err != nil {
		return err
	}
	m.report.started = true
	if err := m.add(ctx, rotatorv1.KeyHome_KEY_HOME_ACTIVE, active, &m.report.Keys); err != nil {
		return err
	}
	if err := m.add(ctx, rotatorv1.KeyHome_KEY_HOME_BACKUP, backups, &m.report.Backups); err != nil {
		return err
	}
	return m.bind(ctx, proxies)
}

// look reads whether the pool is there, and its slots.
func (m *mongoImport) look(ctx context.Context) error {
	answer, err := ask(ctx, m.c, m.c.admin, rotatorv1.AdminServiceClient.GetPool, &rotatorv1.GetPoolRequest{Name: m.pool})
	if st, ok := statusOf(err); ok && st.Code() == codes.NotFound {
		return nil
	} else if err != nil {
		return err
	}
	m.exists, m.revision = true, answer.GetRevision()
	keys, err := m.c.listKeysSince(ctx, m.revision, m.pool, rotatorv1.KeyHome_KEY_HOME_ACTIVE, false)
	if err != nil {
		return err
	}
	for _, key := range keys.GetKeys() {
		m.slots[key.GetSlot()] = true
		m.slotOf[key.GetId()] = key.GetSlot()
	}
	return nil
}

// createPool makes the pool with an empty spec, so that a later `pool create` with none agrees with it.
func (m *mongoImport) createPool(ctx context.Context) error {
	if m.exists || m.absent {
		return nil
	}
	request := &rotatorv1.CreatePoolRequest{Name: m.pool, Spec: &rotatorv1.PoolSpec{}}
	answer, err := askAgain(ctx, m.c, m.c.admin, rotatorv1.AdminServiceClient.CreatePool, request)
	m.revision = answer.GetRevision()
	return err
}

// add adds keys to one home and takes their results into the report.
func (m *mongoImport) add(ctx context.Context, to rotatorv1.KeyHome, planned []plannedKey, section *section) error {
	for len(planned) > 0 {
		batch := batches(newKeys(planned[:min(len(planned), batchKeys)]))[0]
		results, err := m.addBatch(ctx, to, batch)
		if err != nil {
			return err
		}
		for i, result := range results {
			m.take(to, planned[i], result, section)
		}
		planned = planned[len(batch):]
	}
	return nil
}

func (m *mongoImport) addBatch(ctx context.Context, to rotatorv1.KeyHome, keys []*rotatorv1.NewKey) ([]*rotatorv1.AddedKey, error) {
	if m.absent {
		return imagined(to, keys), nil
	}
	request := &rotatorv1.AddKeysRequest{Pool: m.pool, Home: to, Keys: keys, DryRun: m.dryRun}
	answer, err := m.c.addKeys(ctx, request)
	m.revision = max(m.revision, answer.GetRevision())
	return answer.GetResults(), err
}

// imagined is the answer of an empty pool: what could be refused has been found in the files already.
func imagined(to rotatorv1.KeyHome, keys []*rotatorv1.NewKey) []*rotatorv1.AddedKey {
	var out []*rotatorv1.AddedKey
	for _, key := range keys {
		out = append(out, &rotatorv1.AddedKey{Id: key.GetId(), Result: rotatorv1.AddResult_ADD_RESULT_ADDED, Home: to})
	}
	return out
}

func (m *mongoImport) take(to rotatorv1.KeyHome, key plannedKey, result *rotatorv1.AddedKey, section *section) {
	id := key.key.GetId()
	switch result.GetResult() {
	case rotatorv1.AddResult_ADD_RESULT_ADDED:
		section.New++
		m.haveSlot(to, id)
	case rotatorv1.AddResult_ADD_RESULT_SAME:
		section.Same++
		if result.GetHome() != to {
			m.report.item(section, key.line, id, resultSame, "now "+home(result.GetHome()))
		}
		m.haveSlot(result.GetHome(), id)
	case rotatorv1.AddResult_ADD_RESULT_UNKNOWN:
		section.Unknown++
		m.report.item(section, key.line, id, resultUnknown, "not known whether it was added")
		// If it was not, the service refuses the binding.
		m.haveSlot(to, id)
	default:
		section.Refused++
		m.report.item(section, key.line, id, resultRefused, refusalText(result))
	}
}

// haveSlot notes the slot of an active key that was not there when we looked.
func (m *mongoImport) haveSlot(where rotatorv1.KeyHome, id string) {
	if where == rotatorv1.KeyHome_KEY_HOME_ACTIVE && m.slotOf[id] == "" {
		m.slots[id], m.slotOf[id] = true, id
	}
}

// bind sets the bindings that are not there yet as they should be.
func (m *mongoImport) bind(ctx context.Context, proxies []plannedProxy) error {
	there, err := m.bindingsThere(ctx)
	if err != nil {
		return err
	}
	for _, proxy := range proxies {
		list := m.resolve(proxy)
		if len(list) == 0 {
			continue
		}
		m.report.Proxies.Read++
		if err := m.bindOne(ctx, proxy, list, there[proxy.id]); err != nil {
			return err
		}
	}
	return nil
}

func (m *mongoImport) bindingsThere(ctx context.Context) (map[string]*rotatorv1.Binding, error) {
	out := map[string]*rotatorv1.Binding{}
	if m.absent {
		return out, nil
	}
	answer, err := m.c.listBindingsSince(ctx, m.revision, m.pool, "")
	for _, b := range answer.GetBindings() {
		out[b.GetProxyId()] = b
	}
	return out, err
}

func (m *mongoImport) bindOne(ctx context.Context, proxy plannedProxy, list []*rotatorv1.SlotPriority, before *rotatorv1.Binding) error {
	section := &m.report.Proxies
	if before != nil && sameSlots(before.GetSlots(), list) {
		section.Same++
		return nil
	}
	refused, err := m.setBinding(ctx, proxy, list)
	switch {
	case err != nil:
		return err
	case refused != "":
		section.Refused++
		m.report.item(section, proxy.keys[0].line, proxy.id, resultRefused, refused)
	case before == nil:
		section.New++
	default:
		section.Changed++
		m.report.item(section, proxy.keys[0].line, proxy.id, resultChanged, "was bound to "+slots(before.GetSlots())+", now to "+slots(list))
	}
	return nil
}

// maxSlots is the contract's limit for one binding.
const maxSlots = 32

// setBinding returns why a binding was refused, or the error that ends the import.
func (m *mongoImport) setBinding(ctx context.Context, proxy plannedProxy, list []*rotatorv1.SlotPriority) (string, error) {
	if len(list) > maxSlots {
		return fmt.Sprintf("it has %d slots, and %d is the most", len(list), maxSlots), nil
	}
	if m.dryRun {
		return "", nil
	}
	request := &rotatorv1.SetBindingRequest{Pool: m.pool, ProxyId: proxy.id, Slots: list}
	_, err := askAgain(ctx, m.c, m.c.admin, rotatorv1.AdminServiceClient.SetBinding, request)
	if err == nil {
		return "", nil
	}
	if code := exitCode(err); code == exitUsage || code == exitRefused {
		return refusalOf(m.c, err), nil
	}
	return "", err
}

func refusalOf(c *cli, err error) string {
	var own *commandError
	if errors.As(err, &own) {
		return own.message
	}
	return c.describe(err)
}

// resolve turns keys into slots. The slot has the key's name at import and keeps it when the key is rotated; a key that
// was added by hand may have another.
func (m *mongoImport) resolve(proxy plannedProxy) []*rotatorv1.SlotPriority {
	byName := map[string]*rotatorv1.SlotPriority{}
	var out []*rotatorv1.SlotPriority
	for _, key := range proxy.keys {
		name := key.id
		if !m.slots[name] {
			name = m.slotOf[key.id]
		}
		switch {
		case name == "":
			m.report.orphan(proxy, key)
		case byName[name] != nil:
			m.report.twice(proxy, key, byName[name])
		default:
			byName[name] = &rotatorv1.SlotPriority{Slot: name, Priority: int32(key.priority)}
			out = append(out, byName[name])
		}
	}
	if len(out) == 0 {
		m.report.unbound(proxy)
	}
	sortSlots(out)
	return out
}
