//! Archives for the tests, built header by header.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::process::{getegid, geteuid};
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::*;

mod cpio;
mod hostile;
mod layers;
mod ordinary;
mod part;

/// An archive in the making.
#[derive(Clone, Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn raw(mut self, header: &Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn add(self, name: &str, kind: EntryType, data: &[u8]) -> Self {
        self.raw(&header(name, kind, data.len()), data)
    }

    fn file(self, name: &str, data: &str) -> Self {
        self.add(name, EntryType::Regular, data.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.add(name, EntryType::Directory, b"")
    }

    fn add_with_mode(self, name: &str, mode: u32) -> Self {
        let mut header = header(name, EntryType::Directory, 0);
        header.set_mode(mode);
        header.set_cksum();
        self.raw(&header, b"")
    }

    fn link(self, name: &str, kind: EntryType, target: &str) -> Self {
        let mut header = header(name, kind, 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        self.raw(&header, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(name, EntryType::Symlink, target)
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(name, EntryType::Link, target)
    }

    fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.records(EntryType::XHeader, records)
    }

    fn global(self, records: &[(&str, &[u8])]) -> Self {
        self.records(EntryType::XGlobalHeader, records)
    }

    fn records(self, kind: EntryType, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length = (1..8)
                .map(|digits| body + digits)
                .find(|n| n.to_string().len() + body == *n)
                .unwrap();
            data.extend(format!("{length} {key}=").into_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.add("pax", kind, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A header with the name's bytes as they are; the owner is whoever runs the test.
fn header(name: &str, kind: EntryType, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_uid(geteuid().as_raw().into());
    header.set_gid(getegid().as_raw().into());
    header.set_mtime(1_600_000_000);
    header.set_cksum();
    header
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A target with something valuable beside it.
struct Scene {
    outside: TempDir,
    target: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(outside.path().join("etc")).unwrap();
        fs::write(outside.path().join("etc/passwd"), "valuable").unwrap();
        let target = outside.path().join("target");
        fs::create_dir(&target).unwrap();
        Self { outside, target }
    }

    fn extract(&self, archive: &[u8]) -> Result<Extracted, TarballError> {
        self.extract_part(archive, &Wanted::default())
    }

    fn extract_part(&self, archive: &[u8], wanted: &Wanted) -> Result<Extracted, TarballError> {
        let path = self.outside.path().join("archive");
        fs::File::create(&path).unwrap().write_all(archive).unwrap();
        let result = extract(&path, &self.target, wanted, &(), &Cancel::default());
        fs::remove_file(&path).unwrap();
        self.assert_untouched();
        result
    }

    fn extract_layer(&self, archive: &[u8], depth: Depth) -> Result<Extracted, TarballError> {
        let path = self.outside.path().join("layer");
        fs::write(&path, archive).unwrap();
        let file = fs::File::open(&path).unwrap();
        let wanted = Wanted::default();
        let room = Room::new(None, &self.target).unwrap();
        let result = extract_layer(
            file,
            &path,
            &self.target,
            &wanted,
            (depth, &room),
            &(),
            &Cancel::default(),
        );
        fs::remove_file(&path).unwrap();
        self.assert_untouched();
        result
    }

    fn assert_untouched(&self) {
        let mut names: Vec<_> = self
            .outside
            .path()
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["etc", "target"]);
        let inside: Vec<_> = self
            .outside
            .path()
            .join("etc")
            .read_dir()
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(inside, ["passwd"]);
        let passwd = self.outside.path().join("etc/passwd");
        assert_eq!(fs::read_to_string(&passwd).unwrap(), "valuable");
        assert_eq!(fs::metadata(&passwd).unwrap().nlink(), 1);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.target.join(name)).unwrap()
    }
}

fn refused(archive: Archive) -> String {
    Scene::new().extract(&archive.end()).unwrap_err().to_string()
}

fn is_root() -> bool {
    geteuid().is_root()
}
