use super::*;

fn limits(requests: Option<u64>, records: Option<u64>, bytes: Option<u64>) -> RateLimits {
    RateLimits { requests_per_second: requests, records_per_second: records, bytes_in_flight: bytes }
}

fn per_key(limits: RateLimits) -> Option<Limits> {
    Some(Limits { per_key: Some(limits), pipeline: None })
}

fn code(admitted: Result<Admission, Failure>) -> Result<Admission, (String, u64)> {
    admitted.map_err(|failure| match &failure {
        Failure::TooManyRequests(problem, after) => (problem.code.clone(), *after),
        other => panic!("{other:?}"),
    })
}

fn request(length: Option<usize>) -> Request {
    let request = Request::builder();
    match length {
        Some(length) => request.header(CONTENT_LENGTH, length).finish(),
        None => request.finish(),
    }
}

#[test]
fn a_limit_is_divided_by_the_processes() {
    for (processes, expected) in [(1, 4), (2, 2), (3, 1)] {
        let (limiter, usage) = (RateLimiter::default(), Arc::default());
        limiter.set_processes(processes);
        let admit = || {
            let own = (RateLimits::default(), &usage);
            limiter.admit(per_key(limits(Some(4), None, None)), own, &request(None), (10, false))
        };
        let admitted = (0..20).filter(|_| admit().is_ok()).count();
        assert_eq!(admitted, expected, "{processes}");
    }
}

#[test]
fn a_request_that_is_alone_is_admitted_whatever_its_size_and_others_wait() {
    let (limiter, usage) = (RateLimiter::default(), Arc::default());
    let admit = |length| {
        let own = (limits(None, None, Some(100)), &usage);
        code(limiter.admit(None, own, &request(length), (1_000, false)))
    };
    let first = admit(Some(500)).expect("alone");
    assert_eq!(admit(Some(1)).map(|_| ()), Err((CODE.to_owned(), 1)));
    drop(first);
    let unknown = admit(None).expect("alone");
    assert!(unknown.read(60).is_ok());
    let second = admit(Some(10)).expect("there is room");
    assert!(unknown.read(95).is_ok() && second.read(11).is_ok());
    assert!(unknown.read(900).is_ok(), "the other holds less than the limit");
    assert!(second.read(12).is_err());
    drop((unknown, second));
    assert_eq!(usage.bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn what_the_pipeline_refuses_costs_the_key_nothing() {
    let (limiter, one, other) = (RateLimiter::default(), Arc::default(), Arc::default());
    let all =
        Some(Limits { per_key: Some(limits(Some(100), None, None)), pipeline: Some(limits(Some(1), None, None)) });
    let admit = |usage| limiter.admit(all, (RateLimits::default(), usage), &request(None), (10, false));
    assert!(admit(&one).is_ok() && admit(&other).is_err());
    let fields = |usage: &Arc<Usage>| usage.requests.left(limiter.now(), 100.0).0;
    assert_eq!(fields(&other), 100);
    assert!(fields(&one) >= 99);
}

#[test]
fn records_are_admitted_while_any_are_left_and_refuse_the_next_request() {
    let (limiter, usage) = (RateLimiter::default(), Arc::default());
    let own = || (limits(None, Some(10), None), &usage);
    let first = limiter.admit(None, own(), &request(None), (10, false)).expect("admitted");
    assert_eq!((first.step(1_000), first.records(25)), (10, Ok(())));
    let (code, after) = code(limiter.admit(None, own(), &request(None), (10, false))).expect_err("in debt");
    assert_eq!((code.as_str(), after), (CODE, 2));
}

#[test]
fn the_headers_name_each_limit_and_are_absent_without_any() {
    let (limiter, usage) = (RateLimiter::default(), Arc::default());
    limiter.set_processes(2);
    let all = Some(Limits {
        per_key: Some(limits(Some(100), Some(1_000), None)),
        pipeline: Some(limits(None, None, Some(5_000))),
    });
    let mut request = request(Some(40));
    let slot = Slot::default();
    request.set_data(slot.clone());
    let own = (limits(Some(20), None, None), &usage);
    let _admission = limiter.admit(all, own, &request, (10_000, false)).expect("admitted");
    let (policy, state) = slot.0.get().expect("admitted").fields();
    assert_eq!(
        policy,
        "\"key-requests\";q=10;w=1, \"key-records\";q=500;w=1;qu=\"records\", \
         \"pipeline-bytes\";q=2500;qu=\"content-bytes\""
    );
    assert_eq!(state, "\"key-requests\";r=9;t=1, \"key-records\";r=500;t=0, \"pipeline-bytes\";r=2460");
    let unlimited = Slot::default();
    let mut request = Request::builder().finish();
    request.set_data(unlimited.clone());
    assert!(limiter.admit(None, (RateLimits::default(), &usage), &request, (10, false)).is_ok());
    assert!(unlimited.0.get().is_none());
}
