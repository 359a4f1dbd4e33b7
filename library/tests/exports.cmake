# The library gives its functions to others, and nothing else.
execute_process(COMMAND ${NM} --dynamic --defined-only --extern-only ${LIBRARY} OUTPUT_VARIABLE symbols
                COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^ \n]+\n" names "${symbols}")
list(LENGTH names count)
foreach(name ${names})
  if(NOT name MATCHES "^srgan_fast_[a-z_]+\n$")
    message(FATAL_ERROR "the library exports ${name}")
  endif()
endforeach()
if(NOT count EQUAL 9)
  message(FATAL_ERROR "the library exports ${count} functions, and the header declares 9")
endif()
