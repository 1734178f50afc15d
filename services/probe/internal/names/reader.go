package names

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"

	"golang.org/x/sys/unix"
)

// maxFileBytes bounds a file: 16 MiB is far beyond any real one.
const maxFileBytes = 16 << 20

// Reader reads name files, again and again. It belongs to one goroutine.
type Reader struct {
	files []file
}

type file struct {
	path string
	seen stamp // when it was read last, or tried to
	book Book  // its last good content
}

// stamp changes whenever a file's content or its mode does, or another file takes its place. It is zero for a file that is not there.
type stamp struct {
	inode, size uint64
	changed     unix.Timespec // ctime: as mtime, but nobody can set it back
}

// New returns a Reader for the files at paths. It reads nothing yet.
func New(paths []string) *Reader {
	r := &Reader{}
	for _, p := range paths {
		r.files = append(r.files, file{path: p})
	}
	return r
}

// Load reads all files into one book. Where two of them name the same key the first file in the list counts, with its tags.
//
// Errors name the file, and the line where one is wrong; everything else still counts. A file that cannot be read keeps the names it gave
// last, and is read again as soon as Changed sees that it has come back.
func (r *Reader) Load() (Book, []error) {
	book := make(Book)
	var errs []error
	for i := len(r.files) - 1; i >= 0; i-- {
		errs = append(r.files[i].load(), errs...)
		maps.Copy(book, r.files[i].book)
	}
	return book, errs
}

// Changed reports whether any file is another one than Load saw. It costs one stat a file.
func (r *Reader) Changed() bool {
	for _, f := range r.files {
		if f.stat() != f.seen {
			return true
		}
	}
	return false
}

func (f *file) stat() stamp {
	var st unix.Stat_t
	if err := unix.Stat(f.path, &st); err != nil {
		return stamp{}
	}
	return stamp{inode: st.Ino, size: uint64(st.Size), changed: st.Ctim}
}

func (f *file) load() []error {
	f.seen = f.stat() // before reading, so that what is written meanwhile counts as a change
	text, err := readFile(f.path)
	if err != nil {
		var path *os.PathError
		if errors.As(err, &path) {
			err = path.Err
		}
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w (the probe runs as user %d, and not even as root does it read other users' files)", err, os.Geteuid())
		}
		return []error{fmt.Errorf("%s: cannot read names, correct the file or PROBE_NAMES: %w", f.path, err)}
	}
	book, errs := Parse(f.path, text)
	f.book = book
	return errs
}

func readFile(path string) ([]byte, error) {
	// A FIFO would block an open without O_NONBLOCK.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	text, err := io.ReadAll(io.LimitReader(file, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFileBytes {
		return nil, fmt.Errorf("more than %d MiB", maxFileBytes>>20)
	}
	return text, nil
}
