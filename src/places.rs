//! Where an address is, from a database file in MaxMind's format (GeoLite2, GeoIP2, DB-IP).
//!
//! The file is held in memory: a file that is mapped instead and cut short by its owner ends the process, which is why
//! mapping is `unsafe`. It costs the file's size (about 10 MB for countries, 60 to 130 MB for cities), and twice that
//! for the moment in which a newer file is read.

use std::{
    fs::{self, File, Metadata},
    io::{self, Read as _},
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, TryLockError},
    thread,
    time::{Duration, Instant},
};

use maxminddb::{MaxMindDbError, PathElement, Reader, path as keys};

use crate::services::model::Place;

/// How often the file is looked at.
const INTERVAL: Duration = Duration::from_secs(60);
/// The largest file that is read, in bytes.
const MOST_BYTES: u64 = 1024 * 1024 * 1024;
/// The longest name that is passed on, in characters.
const MOST_CHARACTERS: usize = 100;
/// What the type of a file with countries, or with cities and countries, contains.
const KINDS: [&str; 3] = ["City", "Country", "Enterprise"];

/// A database of places. A newer file in its place is taken up within two or three minutes, while it is in use.
pub struct Places {
    source: Arc<Source>,
    interval: Duration,
    looked_at: Mutex<Instant>,
}

/// Why there is no database of places, as one sentence.
#[derive(Debug, thiserror::Error)]
pub enum PlacesError {
    /// The file cannot be opened or read.
    #[error("the places file {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, or something else that is no file.
    #[error("the places file {} is not a file", path.display())]
    NotAFile {
        /// What is no file.
        path: PathBuf,
    },
    /// No such database is that large.
    #[error("the places file {} has more than {MOST_BYTES} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not in MaxMind's format, or not whole.
    #[error("the places file {} is not a MaxMind database: {source}", path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        source: Box<MaxMindDbError>,
    },
    /// The database has something else than places.
    #[error("the places file {} has the type '{kind}': one with cities or countries is needed", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// The type it gives itself.
        kind: String,
    },
}

type Database = Reader<Vec<u8>>;

struct Source {
    path: PathBuf,
    current: RwLock<Arc<Database>>,
    looks: Mutex<Looks>,
}

/// What the looks at the file saw; `None` when there was none.
struct Looks {
    /// The file that was taken up, or refused.
    settled: Option<Stamp>,
    last: Option<Stamp>,
}

/// Tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Places {
    /// Reads a database file.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or holds no places.
    pub fn open(path: &Path) -> Result<Self, PlacesError> {
        let (database, stamp) = load(path)?;
        Ok(Self {
            source: Arc::new(Source {
                path: path.to_owned(),
                current: RwLock::new(Arc::new(database)),
                looks: Mutex::new(Looks { settled: Some(stamp), last: Some(stamp) }),
            }),
            interval: INTERVAL,
            looked_at: Mutex::new(Instant::now()),
        })
    }

    /// Where an address is; empty when that is not known, and for private addresses. Never waits for the file.
    pub fn of(&self, ip: IpAddr) -> Place {
        self.look();
        let ip = ip.to_canonical();
        if is_private(ip) { Place::default() } else { self.source.find(ip) }
    }

    /// Looks at the file if it is time, on a thread of its own: a request does not wait for a disk.
    fn look(&self) {
        let Some(mut looked_at) = try_lock(&self.looked_at) else { return };
        if looked_at.elapsed() < self.interval {
            return;
        }
        *looked_at = Instant::now();
        let source = Arc::clone(&self.source);
        if let Err(error) = thread::Builder::new().name("places".to_owned()).spawn(move || source.look()) {
            tracing::warn!(%error, "no thread to look at the places file");
        }
    }
}

impl Source {
    fn current(&self) -> Arc<Database> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn find(&self, ip: IpAddr) -> Place {
        let database = self.current();
        // A broken entry is an unknown place.
        let Ok(found) = database.lookup(ip) else { return Place::default() };
        let name =
            |path: &[PathElement<'_>]| found.decode_path::<&str>(path).ok().flatten().map_or_else(String::new, clean);
        Place { country: name(&keys!["country", "names", "en"]), city: name(&keys!["city", "names", "en"]) }
    }

    /// Takes up another file once two looks saw the same: the first may have met one that is being written. What
    /// cannot be used is refused once, and the database at hand stays.
    fn look(&self) {
        let Some(mut looks) = try_lock(&self.looks) else { return };
        let stamp = Stamp::of(&self.path);
        if stamp == looks.settled || stamp != looks.last {
            looks.last = stamp;
            return;
        }
        match load(&self.path) {
            Ok((database, read)) => {
                looks.last = Stamp::of(&self.path);
                if looks.last == Some(read) {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(database);
                    looks.settled = looks.last;
                    tracing::info!(file = %self.path.display(), "the places file was renewed");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the places stay what they were");
                // A file that could not be read is tried again: it need not be the file's fault.
                if stamp.is_none() || !matches!(error, PlacesError::Unreadable { .. }) {
                    looks.settled = stamp;
                }
            }
        }
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Reads a database, with the stamp of the file from before it was read.
fn load(path: &Path) -> Result<(Database, Stamp), PlacesError> {
    let unreadable = |source| PlacesError::Unreadable { path: path.to_owned(), source };
    // Before it is opened: to open a pipe would wait for its other end.
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(PlacesError::NotAFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let stamp = Stamp::from(&metadata);
    let too_large = || PlacesError::TooLarge { path: path.to_owned() };
    if stamp.bytes > MOST_BYTES {
        return Err(too_large());
    }
    let mut content = Vec::new();
    if let Ok(bytes) = usize::try_from(stamp.bytes) {
        content.try_reserve_exact(bytes).map_err(|error| unreadable(io::Error::from(error)))?;
    }
    file.take(MOST_BYTES + 1).read_to_end(&mut content).map_err(unreadable)?;
    if u64::try_from(content.len()).is_ok_and(|bytes| bytes > MOST_BYTES) {
        return Err(too_large());
    }
    Ok((parse(path, content)?, stamp))
}

fn parse(path: &Path, content: Vec<u8>) -> Result<Database, PlacesError> {
    let database = Reader::from_source(content)
        .map_err(|source| PlacesError::NotADatabase { path: path.to_owned(), source: Box::new(source) })?;
    let kind = &database.metadata().database_type;
    if KINDS.iter().any(|known| kind.contains(known)) {
        Ok(database)
    } else {
        Err(PlacesError::OtherKind { path: path.to_owned(), kind: clean(kind) })
    }
}

/// A name without what a terminal, a mail or a page could take for more than letters.
fn clean(name: &str) -> String {
    let is_letter = |letter: &char| {
        !letter.is_control()
            && !matches!(letter, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    let mut cleaned: String =
        name.chars().filter(is_letter).skip_while(|letter| letter.is_whitespace()).take(MOST_CHARACTERS).collect();
    cleaned.truncate(cleaned.trim_end().len());
    cleaned
}

/// Whether an address says nothing about a place, whatever a file has on it.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            // RFC 6598: addresses behind a carrier's translation.
            let is_shared = first == 100 && (64..128).contains(&second);
            ip.is_private()
                || ip.is_loopback()
                || ip.is_link_local()
                || ip.is_unspecified()
                || ip.is_broadcast()
                || ip.is_multicast()
                || is_shared
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_unique_local()
                || ip.is_unicast_link_local()
                || ip.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    const FIXTURE: &[u8] = include_bytes!("../tests/fixtures/places.mmdb");
    const LAGOS: &str = "192.0.2.7";

    fn replaced(from: &[u8], to: &[u8]) -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let mut content = FIXTURE.to_vec();
        let starts: Vec<usize> =
            (0..content.len()).filter(|start| FIXTURE.get(*start..).unwrap().starts_with(from)).collect();
        assert!(!starts.is_empty());
        for start in starts {
            content.get_mut(start..start + to.len()).unwrap().copy_from_slice(to);
        }
        content
    }

    fn abuja() -> Vec<u8> {
        replaced(b"Lagos", b"Abuja")
    }

    fn file(content: &[u8]) -> (TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("places.mmdb");
        fs::write(&path, content).unwrap();
        (directory, path)
    }

    /// As operators do it: a new file, moved to the old one's place.
    fn replace(path: &Path, content: &[u8]) {
        let new = path.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn places() -> (TempDir, PathBuf, Places) {
        let (directory, path) = file(FIXTURE);
        let places = Places::open(&path).unwrap();
        (directory, path, places)
    }

    fn at(places: &Places, ip: &str) -> (String, String) {
        let place = places.of(ip.parse().unwrap());
        (place.country, place.city)
    }

    fn city(places: &Places) -> String {
        at(places, LAGOS).1
    }

    fn pair(country: &str, city: &str) -> (String, String) {
        (country.to_owned(), city.to_owned())
    }

    #[test]
    fn an_address_is_found_by_its_network() {
        let (_directory, _path, places) = places();
        assert_eq!(at(&places, LAGOS), pair("Nigeria", "Lagos"));
        assert_eq!(at(&places, "192.0.2.255"), pair("Nigeria", "Lagos"));
        assert_eq!(at(&places, "198.51.100.1"), pair("Switzerland", "Zürich"));
        assert_eq!(at(&places, "2001:db8:1::1"), pair("Kenya", ""));
    }

    #[test]
    fn an_ipv4_address_in_the_form_of_ipv6_is_the_same_address() {
        let (_directory, _path, places) = places();
        assert_eq!(at(&places, "::ffff:192.0.2.7"), pair("Nigeria", "Lagos"));
        assert_eq!(at(&places, "::ffff:10.0.0.1"), pair("", ""));
    }

    #[test]
    fn an_unknown_address_has_no_place() {
        let (_directory, _path, places) = places();
        for ip in ["192.0.3.1", "2001:db9::1", "203.0.113.200"] {
            assert_eq!(at(&places, ip), pair("", ""), "{ip}");
        }
    }

    #[test]
    fn a_private_address_has_no_place_even_if_the_file_has_one() {
        let (_directory, _path, places) = places();
        for ip in ["10.0.0.1", "100.64.0.1", "100.127.255.255", "fd00::1", "fe80::1"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(places.source.find(ip).country, "Nowhere", "{ip}");
            assert_eq!(places.of(ip), Place::default(), "{ip}");
        }
        for ip in ["127.0.0.1", "169.254.0.1", "172.16.0.1", "192.168.1.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"] {
            assert!(is_private(ip.parse().unwrap()), "{ip}");
        }
        for ip in ["100.63.255.255", "100.128.0.0", "172.32.0.1", "8.8.8.8", "2001:db8::1"] {
            assert!(!is_private(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn names_are_english_clean_and_bounded() {
        let (_directory, _path, places) = places();
        assert_eq!(at(&places, "203.0.113.1"), pair("", ""), "there is no English name");
        assert_eq!(at(&places, "203.0.113.17"), pair("NigeriaBcc: x", "[2JLagos"));
        assert_eq!(at(&places, "203.0.113.33"), ("ü".repeat(100), "x".repeat(100)));
        assert_eq!(at(&places, "203.0.113.65"), pair("", ""));
    }

    #[test]
    fn a_broken_entry_is_an_unknown_place_and_leaves_the_rest() {
        let (_directory, _path, places) = places();
        assert_eq!(at(&places, "203.0.113.49"), pair("Ghana", ""));
        assert_eq!(at(&places, "203.0.113.81"), pair("", ""));
    }

    #[test]
    fn a_file_for_ipv4_alone_places_no_ipv6_address() {
        // The type of an address is the number after the key: 6 becomes 4, the tree stays.
        let content = replaced(b"ip_version\xa1\x06", b"ip_version\xa1\x04");
        let (_directory, path) = file(&content);
        let places = Places::open(&path).unwrap();
        assert_eq!(at(&places, "2001:db8::1"), pair("", ""));
    }

    #[test]
    fn what_is_no_database_of_places_is_refused_in_one_sentence() {
        let (directory, path) = file(FIXTURE);
        let sentence =
            |path: &Path| Places::open(path).err().unwrap().to_string().replace(&path.display().to_string(), "F");
        let refused = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            sentence(&path)
        };
        assert_eq!(
            sentence(&directory.path().join("none.mmdb")),
            "the places file F cannot be read: No such file or directory (os error 2)"
        );
        assert_eq!(sentence(directory.path()), "the places file F is not a file");
        assert_eq!(sentence(Path::new("/dev/zero")), "the places file F is not a file");
        for content in [b"".as_slice(), b"<html>", &FIXTURE[..FIXTURE.len() / 2], &FIXTURE[FIXTURE.len() / 2..]] {
            assert!(
                refused(content).starts_with("the places file F is not a MaxMind database: "),
                "{}",
                refused(content)
            );
        }
        assert_eq!(
            refused(&replaced(b"Bifrons-Test-City", b"Bifrons\nTest-ASN.")),
            "the places file F has the type 'BifronsTest-ASN.': one with cities or countries is needed"
        );
        for kind in [b"GeoIP2-Countryxxx", b"GeoIP2-Enterprise"] {
            fs::write(&path, replaced(b"Bifrons-Test-City", kind)).unwrap();
            assert!(Places::open(&path).is_ok());
        }
        File::create(&path).unwrap().set_len(MOST_BYTES + 1).unwrap();
        assert_eq!(sentence(&path), "the places file F has more than 1073741824 bytes");
    }

    #[test]
    fn a_newer_file_is_taken_up_once_it_stands_still() {
        let (_directory, path, places) = places();
        replace(&path, &abuja());
        places.source.look();
        assert_eq!(city(&places), "Lagos", "it may still be being written");
        places.source.look();
        assert_eq!(city(&places), "Abuja");
        fs::write(&path, FIXTURE).unwrap();
        places.source.look();
        places.source.look();
        assert_eq!(city(&places), "Lagos", "written over in place");
    }

    #[test]
    fn a_file_that_changes_at_each_look_is_not_read() {
        let (_directory, path, places) = places();
        for _ in 0..4 {
            replace(&path, &abuja());
            places.source.look();
            assert_eq!(city(&places), "Lagos");
        }
    }

    #[test]
    fn a_file_that_is_gone_or_broken_changes_nothing_until_a_good_one_comes() {
        let (_directory, path, places) = places();
        let look = || (0..3).for_each(|_| places.source.look());
        fs::remove_file(&path).unwrap();
        look();
        assert_eq!(city(&places), "Lagos");
        for broken in [b"".as_slice(), b"<html>", &FIXTURE[..FIXTURE.len() / 2], &replaced(b"Test-City", b"Test-ASN.")]
        {
            replace(&path, broken);
            look();
            assert_eq!(city(&places), "Lagos");
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        look();
        assert_eq!(city(&places), "Lagos");
        fs::remove_dir(&path).unwrap();
        replace(&path, &abuja());
        look();
        assert_eq!(city(&places), "Abuja");
    }

    #[test]
    fn requests_make_the_looks_and_not_more_often_than_the_interval() {
        let (_directory, path, mut places) = places();
        replace(&path, &abuja());
        for _ in 0..1000 {
            assert_eq!(city(&places), "Lagos");
        }
        let is_untouched = |places: &Places| {
            let looks = places.source.looks.lock().unwrap();
            looks.last == looks.settled
        };
        assert!(is_untouched(&places), "the first look is due in a minute");
        places.interval = Duration::ZERO;
        let began = Instant::now();
        while city(&places) != "Abuja" {
            assert!(began.elapsed() < Duration::from_secs(20), "the requests did not bring the new file");
            thread::yield_now();
        }
    }

    #[test]
    fn requests_are_answered_while_the_file_is_renewed() {
        let (_directory, path, places) = places();
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let mut answers = 0;
                        while !is_over.load(Ordering::Relaxed) {
                            let city = city(&places);
                            assert!(city == "Lagos" || city == "Abuja", "{city}");
                            answers += 1;
                        }
                        answers
                    })
                })
                .collect();
            for _ in 0..50 {
                for content in [abuja(), FIXTURE.to_vec()] {
                    replace(&path, &content);
                    places.source.look();
                    places.source.look();
                }
            }
            is_over.store(true, Ordering::Relaxed);
            assert!(readers.into_iter().all(|reader| reader.join().unwrap() > 0));
        });
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn a_damaged_file_is_refused_or_answers_within_bounds(
            changes in prop::collection::vec((0..FIXTURE.len(), any::<u8>()), 1..12),
            cut in prop::option::of(0..FIXTURE.len()),
        ) {
            let mut content = FIXTURE.to_vec();
            for (position, byte) in changes {
                *content.get_mut(position).unwrap() = byte;
            }
            content.truncate(cut.unwrap_or(FIXTURE.len()));
            if let Ok(database) = parse(Path::new("F"), content) {
                let source = Source {
                    path: PathBuf::new(),
                    current: RwLock::new(Arc::new(database)),
                    looks: Mutex::new(Looks { settled: None, last: None }),
                };
                for ip in [LAGOS, "198.51.100.1", "203.0.113.17", "203.0.113.33", "2001:db8::1", "::1", "255.0.0.1"] {
                    let place = source.find(ip.parse().unwrap());
                    for name in [place.country, place.city] {
                        prop_assert!(name.chars().count() <= MOST_CHARACTERS && !name.contains(char::is_control));
                    }
                }
            }
        }
    }
}
