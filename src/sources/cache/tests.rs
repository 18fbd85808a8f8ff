use std::fs;
use std::sync::Mutex;

use super::*;
use crate::sources::Distro;
use crate::sources::bootstrap::Tool;

struct Place {
    dir: tempfile::TempDir,
    places: Places,
    recipe: Recipe,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let places = Places {
        cache: dir.path().join("cache"),
        logs: dir.path().join("logs"),
        ..Places::default()
    };
    let keyring = dir.path().join("keys");
    fs::write(&keyring, "keys").unwrap();
    let recipe = Recipe {
        distro: Distro::Debian,
        suite: "sid".to_owned(),
        arch: "amd64".to_owned(),
        variant: "minbase".to_owned(),
        components: vec!["main".to_owned()],
        include: vec!["vim".to_owned()],
        mirror: format!("file://{}", dir.path().join("mirror").display()),
        public: false,
        keyring,
        tool: Tool::Debootstrap,
        proxy: None,
        components_given: false,
    };
    Place { dir, places, recipe }
}

impl Place {
    fn release(&self, serial: u32) -> Release {
        let dists = self.dir.path().join("mirror/dists/sid");
        fs::create_dir_all(&dists).unwrap();
        fs::write(
            dists.join("InRelease"),
            format!("Suite: unstable\nArchitectures: amd64\nSerial: {serial}\n"),
        )
        .unwrap();
        mirror::fetch_release(Distro::Debian, "sid", &self.recipe.mirror, None, &Cancel::default()).unwrap()
    }

    /// Puts a tree into the cache as a build would.
    fn put(&self, release: &Release) -> PathBuf {
        let opened = Shelf::open(&self.recipe, &self.places).unwrap();
        let entry = opened.entry(release);
        fs::create_dir_all(entry.join("root/etc")).unwrap();
        fs::write(entry.join("root/etc/os-release"), "x").unwrap();
        let description = Description {
            description: self.recipe.describe(),
            created: jiff::Timestamp::now(),
        };
        fs::write(entry.join("entry.json"), serde_json::to_vec(&description).unwrap()).unwrap();
        entry
    }

    fn fill(&self, report: &dyn Report) -> Result<PathBuf, SourceError> {
        let target = self.dir.path().join("target");
        let _ = fs::remove_dir_all(&target);
        fill(
            &self.recipe,
            CacheUse::Use,
            &self.places,
            &target,
            report,
            &Cancel::default(),
        )?;
        Ok(target)
    }
}

#[derive(Default)]
struct Warnings(Mutex<Vec<String>>);

impl Report for Warnings {
    fn phase(&self, _: &str) {}
    fn progress(&self, _: u64, _: Option<u64>) {}
    fn warn(&self, message: &str) {
        self.0.lock().unwrap().push(message.to_owned());
    }
}

#[test]
fn everything_that_shapes_a_tree_is_in_its_key() {
    let place = place();
    let hash = |change: &dyn Fn(&mut Recipe)| {
        let mut recipe = place.recipe.clone();
        change(&mut recipe);
        inputs_hash(&recipe).unwrap()
    };
    let other_keys = place.dir.path().join("other");
    fs::write(&other_keys, "others").unwrap();
    let mut all = vec![
        hash(&|_| {}),
        hash(&|recipe| recipe.distro = Distro::Ubuntu),
        hash(&|recipe| recipe.suite = "trixie".to_owned()),
        hash(&|recipe| recipe.arch = "arm64".to_owned()),
        hash(&|recipe| recipe.variant = "buildd".to_owned()),
        hash(&|recipe| recipe.components.push("contrib".to_owned())),
        hash(&|recipe| recipe.include.push("contrib".to_owned())),
        hash(&|recipe| recipe.mirror.push('x')),
        hash(&|recipe| recipe.tool = Tool::Mmdebstrap),
        hash(&|recipe| recipe.keyring = other_keys.clone()),
    ];
    assert_eq!(
        all[0],
        hash(&|recipe| recipe.proxy = Some("http://p".to_owned())),
        "a proxy shapes nothing"
    );
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 10);
}

#[test]
fn the_components_in_the_guests_sources_are_in_the_key() {
    let mut place = place();
    let key = |recipe: &Recipe| inputs_hash(recipe).unwrap();
    let given = Recipe {
        components_given: true,
        ..place.recipe.clone()
    };
    assert_eq!(key(&place.recipe), key(&given), "Debian has main either way");
    place.recipe.distro = Distro::Ubuntu;
    let given = Recipe {
        components_given: true,
        ..place.recipe.clone()
    };
    assert_ne!(key(&place.recipe), key(&given), "Ubuntu adds universe unless told");
}

#[test]
fn a_cached_tree_is_copied_and_an_absent_mirror_is_told() {
    let place = place();
    let entry = place.put(&place.release(1));
    let warnings = Warnings::default();
    let target = place.fill(&warnings).unwrap();
    assert_eq!(fs::read(target.join("etc/os-release")).unwrap(), b"x");
    assert!(warnings.0.lock().unwrap().is_empty());
    fs::remove_dir_all(place.dir.path().join("mirror")).unwrap();
    place.fill(&warnings).unwrap();
    let warnings = warnings.0.into_inner().unwrap();
    assert!(
        warnings[0].ends_with("using the cached tree made less than a minute ago"),
        "{warnings:?}"
    );
    fs::remove_dir_all(entry).unwrap();
    assert!(matches!(place.fill(&()), Err(SourceError::Unreachable { .. })));
}

#[test]
fn entries_are_listed_and_cleared_unless_in_use() {
    let place = place();
    let release = place.release(1);
    let entry = place.put(&release);
    let shelf = Shelf::open(&place.recipe, &place.places).unwrap();
    let half = shelf.dir.join(format!(".{}.build", shelf.inputs));
    fs::create_dir_all(half.join("root/usr")).unwrap();
    let listed = entries(&place.places, &Cancel::default()).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].path, entry);
    assert!(
        listed[0]
            .description
            .starts_with("debian:sid amd64 minbase +vim from file:")
    );
    assert!(listed[0].bytes > 0);
    let never = Cancel::default();
    let held = shelf.lock(Lock::Shared, &(), &never).unwrap();
    assert!(clear(&place.places, None, &never).unwrap().is_empty());
    drop(held);
    let day = Some(Duration::from_secs(86_400));
    assert_eq!(
        clear(&place.places, day, &never).unwrap(),
        [half],
        "a half-made tree is not kept for its age"
    );
    assert!(entry.exists());
    assert_eq!(
        clear(&place.places, None, &never).unwrap(),
        std::slice::from_ref(&entry)
    );
    assert!(!entry.exists());
    assert_eq!(entries(&place.places, &never).unwrap(), []);
}

#[test]
fn waiting_for_a_lock_can_be_cancelled() {
    let place = place();
    place.put(&place.release(1));
    let shelf = Shelf::open(&place.recipe, &place.places).unwrap();
    let cancel = Cancel::default();
    let _held = shelf.lock(Lock::Exclusive, &(), &cancel).unwrap();
    let target = place.dir.path().join("target");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| fill(&place.recipe, CacheUse::Use, &place.places, &target, &(), &cancel));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!waiting.is_finished());
        cancel.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(SourceError::Cancelled(_))));
    });
}

#[test]
fn leftovers_are_swept_by_the_next_call_unless_somebody_works_on_them() {
    let place = place();
    place.put(&place.release(1));
    let dir = place.places.cache.join("bootstrap");
    let (dead, alive) = ("0".repeat(32), "1".repeat(32));
    for inputs in [&dead, &alive] {
        fs::create_dir_all(dir.join(format!(".{inputs}.build/root/usr"))).unwrap();
    }
    fs::create_dir_all(place.places.cache.join(".scratch-dead/x")).unwrap();
    let lock = open_lock(&dir, &alive).unwrap();
    lock.lock().unwrap();
    let (scratch, _held) = make_scratch(&place.places).unwrap();
    place.fill(&()).unwrap();
    assert!(!dir.join(format!(".{dead}.build")).exists());
    assert!(dir.join(format!(".{alive}.build")).exists());
    assert!(!place.places.cache.join(".scratch-dead").exists());
    assert!(scratch.path().exists());
}

#[test]
fn ages_are_in_words() {
    for (seconds, words) in [
        (5, "less than a minute"),
        (60, "1 minute"),
        (7_300, "2 hours"),
        (200_000, "2 days"),
    ] {
        assert_eq!(in_words(Duration::from_secs(seconds)), words);
    }
}
