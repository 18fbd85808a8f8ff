//! cpio archives.

use super::*;

/// An archive of the form newc.
#[derive(Default)]
struct Newc(Vec<u8>);

impl Newc {
    /// An entry: its name, mode, number of links, inode number and data.
    fn add(mut self, name: &str, mode: u32, links: u32, inode: u32, data: &[u8]) -> Self {
        let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
        let name_size = u32::try_from(name.len() + 1).unwrap();
        let size = u32::try_from(data.len()).unwrap();
        let fields = [
            inode,
            mode,
            uid,
            gid,
            links,
            1_600_000_000,
            size,
            8,
            1,
            0,
            0,
            name_size,
            0,
        ];
        self.0.extend(b"070701");
        for field in fields {
            self.0.extend(format!("{field:08x}").into_bytes());
        }
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn file(self, name: &str, data: &[u8]) -> Self {
        self.add(name, 0o100_644, 1, 7, data)
    }

    fn end(self) -> Vec<u8> {
        let mut bytes = self.add("TRAILER!!!", 0, 1, 0, b"").0;
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

impl Scene {
    fn extract_cpio(&self, archive: &[u8]) -> Result<Extracted, TarballError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(archive).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let contents = Contents::from_file(file, &Cancel::default()).unwrap();
        let result = extract_cpio(
            contents,
            Path::new("x.cpio"),
            &self.target,
            None,
            &(),
            &Cancel::default(),
        );
        self.assert_untouched();
        result
    }
}

#[test]
fn cpio_entries_of_each_kind_are_made() {
    let archive = Newc::default()
        .add(".", 0o040_755, 2, 1, b"")
        .add("dir", 0o040_700, 2, 2, b"")
        .file("dir/file", b"hello")
        .add("dir/link", 0o120_777, 1, 3, b"/etc/passwd")
        .add("fifo", 0o010_600, 1, 4, b"")
        .add("socket", 0o140_600, 1, 5, b"")
        .add("dev/sda", 0o060_600, 1, 6, b"");
    let scene = Scene::new();
    let done = scene.extract_cpio(&gzip(&archive.end())).unwrap();
    assert_eq!((done.entries, done.directories, done.links, done.bytes), (5, 2, 1, 5));
    assert_eq!((done.skipped_sockets, done.skipped_devices), (1, 1));
    assert_eq!(scene.read("dir/file"), "hello");
    let file = fs::metadata(scene.target.join("dir/file")).unwrap();
    assert_eq!((file.mode() & 0o7777, file.mtime()), (0o644, 1_600_000_000));
    assert_eq!(
        fs::read_link(scene.target.join("dir/link")).unwrap(),
        Path::new("/etc/passwd")
    );
}

#[test]
fn names_of_one_file_are_one_file_wherever_its_contents_are() {
    let archive = Newc::default()
        .add("last-1", 0o100_644, 2, 10, b"")
        .add("last-2", 0o100_644, 2, 10, b"at the end")
        .add("first-1", 0o100_644, 3, 11, b"at once")
        .add("first-2", 0o100_644, 3, 11, b"")
        .add("first-3", 0o100_644, 3, 11, b"again, and ignored")
        .add("none-1", 0o100_644, 2, 12, b"")
        .add("none-2", 0o100_644, 2, 12, b"");
    let scene = Scene::new();
    scene.extract_cpio(&archive.end()).unwrap();
    for (names, text) in [
        (&["last-1", "last-2"][..], "at the end"),
        (&["first-1", "first-2", "first-3"], "at once"),
        (&["none-1", "none-2"], ""),
    ] {
        for name in names {
            assert_eq!(scene.read(name), text, "{name}");
            let file = fs::metadata(scene.target.join(name)).unwrap();
            assert_eq!(file.nlink(), names.len() as u64, "{name}");
        }
    }
}

#[test]
fn a_hostile_or_damaged_cpio_is_refused() {
    for (archive, message) in [
        (Newc::default().file("../etc/passwd", b"x").end(), "leads outside"),
        (Newc::default().file("/etc/passwd", b"x").end(), "absolute"),
        (
            Newc::default()
                .add("out", 0o120_777, 1, 3, b"../etc")
                .file("out/passwd", b"x")
                .end(),
            "outside",
        ),
        (
            Newc::default().add("sda", 0o060_600, 1, 3, b"").end(),
            "is a device node",
        ),
        (Newc::default().add("odd", 0o170_600, 1, 3, b"").end(), "invalid mode"),
        (
            Newc::default().file("a", b"x").0,
            "is truncated: it ends without a trailer",
        ),
        (
            Newc::default().file("a", &[b'x'; 99]).0[..150].to_vec(),
            "is truncated: it ends inside",
        ),
        ([Newc::default().end(), b"x".to_vec()].concat(), "goes on after its end"),
        (
            [Newc::default().file("a", b"x").0, vec![b'y'; 200]].concat(),
            "is damaged",
        ),
        (b"070707123456".to_vec(), "of an old form"),
        ([b"070701".to_vec(), vec![b'+'; 104]].concat(), "is damaged"),
    ] {
        let error = Scene::new().extract_cpio(&archive).unwrap_err().to_string();
        assert!(error.contains(message), "no {message:?}: {error}");
    }
}
