// Command golang checks a trail with an implementation that shares nothing with
// otel-audit: golang.org/x/mod/sumdb/note and .../tlog, which stand behind Go's
// checksum database. It reads one JSON document from standard input, and prints
// one with the outcome of each check: an empty string, or what failed.
package main

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type input struct {
	LogKey      string            `json:"log_key"`
	CosignerKey string            `json:"cosigner_key"`
	Records     [][]byte          `json:"records"`
	Tiles       map[string][]byte `json:"tiles"` // "level/index"
	Checkpoints []string          `json:"checkpoints"`
	Inclusion   []struct {
		Index      int64    `json:"index"`
		Checkpoint int      `json:"checkpoint"`
		Hashes     [][]byte `json:"hashes"`
	} `json:"inclusion"`
	Consistency []struct {
		Old    int      `json:"old"`
		New    int      `json:"new"`
		Hashes [][]byte `json:"hashes"`
	} `json:"consistency"`
	Proofs []string `json:"proofs"` // C2SP tlog-proof
	Sign   struct {
		Key  string `json:"key"`
		Text string `json:"text"`
	} `json:"sign"`
}

type output struct {
	Checkpoints []string `json:"checkpoints"`
	Times       []uint64 `json:"times"`
	Roots       []string `json:"roots"`
	Tiles       []string `json:"tiles"`
	Inclusion   []string `json:"inclusion"`
	Consistency []string `json:"consistency"`
	Proofs      []string `json:"proofs"`
	Signed      string   `json:"signed"`
}

func main() {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		fmt.Fprintln(os.Stderr, "input:", err)
		os.Exit(2)
	}
	out, err := check(&in)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, "output:", err)
		os.Exit(2)
	}
}

func check(in *input) (*output, error) {
	logKey, err := note.NewVerifier(in.LogKey)
	if err != nil {
		return nil, fmt.Errorf("log key: %w", err)
	}
	cosigner, err := newCosigner(in.CosignerKey)
	if err != nil {
		return nil, fmt.Errorf("cosigner key: %w", err)
	}
	stored, err := storeHashes(in.Records)
	if err != nil {
		return nil, err
	}
	out := &output{}
	trees := make([]tlog.Tree, len(in.Checkpoints))
	for i, text := range in.Checkpoints {
		tree, time, err := openCheckpoint(text, logKey, cosigner)
		trees[i] = tree
		out.Times = append(out.Times, time)
		out.Checkpoints = append(out.Checkpoints, verdict(err))
		out.Roots = append(out.Roots, verdict(checkRoot(tree, stored)))
		out.Tiles = append(out.Tiles, verdict(checkTiles(tree, in.Tiles)))
	}
	for _, proof := range in.Inclusion {
		tree := trees[proof.Checkpoint]
		err := checkInclusion(in.Records, proof.Index, tree, toHashes(proof.Hashes), stored)
		out.Inclusion = append(out.Inclusion, verdict(err))
	}
	for _, proof := range in.Consistency {
		err := checkConsistency(trees[proof.Old], trees[proof.New], toHashes(proof.Hashes), stored)
		out.Consistency = append(out.Consistency, verdict(err))
	}
	for _, text := range in.Proofs {
		out.Proofs = append(out.Proofs, verdict(checkProof(text, logKey, cosigner)))
	}
	if in.Sign.Key != "" {
		signer, err := note.NewSigner(in.Sign.Key)
		if err != nil {
			return nil, fmt.Errorf("signing key: %w", err)
		}
		signed, err := note.Sign(&note.Note{Text: in.Sign.Text}, signer)
		if err != nil {
			return nil, fmt.Errorf("signing: %w", err)
		}
		out.Signed = string(signed)
	}
	return out, nil
}

func verdict(err error) string {
	if err != nil {
		return err.Error()
	}
	return ""
}

// A memory holds hashes by the index that tlog gives them.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index >= int64(len(m)) {
			return nil, fmt.Errorf("there is no hash %d", index)
		}
		hashes[i] = m[index]
	}
	return hashes, nil
}

func storeHashes(records [][]byte) (memory, error) {
	var stored memory
	for i, record := range records {
		hashes, err := tlog.StoredHashes(int64(i), record, stored)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		stored = append(stored, hashes...)
	}
	return stored, nil
}

// openCheckpoint demands both signatures: the log's, and the cosigner's, whose time it returns.
func openCheckpoint(text string, logKey note.Verifier, cosigner *cosigner) (tlog.Tree, uint64, error) {
	opened, err := note.Open([]byte(text), note.VerifierList(logKey, cosigner))
	if err != nil {
		return tlog.Tree{}, 0, err
	}
	signed := map[string]string{}
	for _, sig := range opened.Sigs {
		signed[sig.Name] = sig.Base64
	}
	if signed[logKey.Name()] == "" || signed[cosigner.Name()] == "" {
		return tlog.Tree{}, 0, errors.New("a signature is missing")
	}
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != logKey.Name() || lines[3] != "" {
		return tlog.Tree{}, 0, errors.New("not a checkpoint of this origin")
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil || strconv.FormatInt(size, 10) != lines[1] {
		return tlog.Tree{}, 0, errors.New("the size is malformed")
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return tlog.Tree{}, 0, err
	}
	raw, err := base64.StdEncoding.DecodeString(signed[cosigner.Name()])
	if err != nil {
		return tlog.Tree{}, 0, err
	}
	return tlog.Tree{N: size, Hash: root}, binary.BigEndian.Uint64(raw[4:12]), nil
}

// A cosigner verifies cosignature/v1 (C2SP tlog-cosignature), which x/mod does not know.
type cosigner struct {
	name string
	id   uint32
	key  ed25519.PublicKey
}

func newCosigner(vkey string) (*cosigner, error) {
	parts := strings.SplitN(vkey, "+", 3)
	if len(parts) != 3 {
		return nil, errors.New("not a verifier key")
	}
	material, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(material) != 33 || material[0] != 4 {
		return nil, errors.New("not a cosigner's key")
	}
	sum := sha256.Sum256([]byte(parts[0] + "\n" + string(material)))
	id := binary.BigEndian.Uint32(sum[:4])
	if fmt.Sprintf("%08x", id) != parts[1] {
		return nil, errors.New("the key id is wrong")
	}
	return &cosigner{parts[0], id, material[1:]}, nil
}

func (c *cosigner) Name() string    { return c.name }
func (c *cosigner) KeyHash() uint32 { return c.id }

func (c *cosigner) Verify(msg, sig []byte) bool {
	if len(sig) != 8+ed25519.SignatureSize {
		return false
	}
	time := binary.BigEndian.Uint64(sig)
	signed := fmt.Sprintf("cosignature/v1\ntime %d\n%s", time, msg)
	return ed25519.Verify(c.key, []byte(signed), sig[8:])
}

func checkRoot(tree tlog.Tree, stored memory) error {
	root, err := tlog.TreeHash(tree.N, stored)
	if err == nil && root != tree.Hash {
		err = errors.New("the root is not that of the records")
	}
	return err
}

// tiles hands out stored tiles, cut to the width that the tree of a checkpoint has.
type tiles map[string][]byte

func (t tiles) Height() int                     { return 8 }
func (t tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (t tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	found := make([][]byte, len(wanted))
	for i, tile := range wanted {
		data := t[fmt.Sprintf("%d/%d", tile.L, tile.N)]
		if len(data) < tile.W*tlog.HashSize {
			return nil, fmt.Errorf("tile %s is missing or too short", tile.Path())
		}
		found[i] = data[:tile.W*tlog.HashSize]
	}
	return found, nil
}

// checkTiles reads every leaf hash through the tiles; the reader checks each tile against the root.
func checkTiles(tree tlog.Tree, stored map[string][]byte) error {
	if tree.N == 0 {
		return nil
	}
	reader := tlog.TileHashReader(tree, tiles(stored))
	indexes := make([]int64, tree.N)
	for i := range indexes {
		indexes[i] = tlog.StoredHashIndex(0, int64(i))
	}
	if _, err := reader.ReadHashes(indexes); err != nil {
		return err
	}
	root, err := tlog.TreeHash(tree.N, reader)
	if err == nil && root != tree.Hash {
		err = errors.New("the root is not that of the tiles")
	}
	return err
}

func checkInclusion(records [][]byte, index int64, tree tlog.Tree, proof []tlog.Hash, stored memory) error {
	own, err := tlog.ProveRecord(tree.N, index, stored)
	if err != nil {
		return err
	}
	if !equal(own, proof) {
		return errors.New("the inclusion proof differs from Go's")
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(records[index]))
}

func checkConsistency(old, current tlog.Tree, proof []tlog.Hash, stored memory) error {
	own, err := tlog.ProveTree(current.N, old.N, stored)
	if err != nil {
		return err
	}
	if !equal(own, proof) {
		return errors.New("the consistency proof differs from Go's")
	}
	return tlog.CheckTree(proof, current.N, current.Hash, old.N, old.Hash)
}

// checkProof checks a C2SP tlog-proof whose extra line holds the record.
func checkProof(text string, logKey note.Verifier, cosigner *cosigner) error {
	head, checkpoint, found := strings.Cut(text, "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return errors.New("not a proof")
	}
	record, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[1], "extra "))
	if err != nil {
		return err
	}
	index, err := strconv.ParseInt(strings.TrimPrefix(lines[2], "index "), 10, 64)
	if err != nil {
		return err
	}
	var proof tlog.RecordProof
	for _, line := range lines[3:] {
		hash, err := tlog.ParseHash(line)
		if err != nil {
			return err
		}
		proof = append(proof, hash)
	}
	tree, _, err := openCheckpoint(checkpoint, logKey, cosigner)
	if err != nil {
		return err
	}
	return tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(record))
}

func toHashes(raw [][]byte) []tlog.Hash {
	hashes := make([]tlog.Hash, len(raw))
	for i, value := range raw {
		copy(hashes[i][:], value)
	}
	return hashes
}

func equal(a, b []tlog.Hash) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
